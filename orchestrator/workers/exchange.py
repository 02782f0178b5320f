"""How the processes of a study share its plans, as the configuration says."""

from __future__ import annotations

from lightning_modules.errors import ConfigError
from orchestrator.search.studies.exchange import Exchange
from orchestrator.search.studies.trial import Study
from orchestrator.settings import Settings
from orchestrator.tracking.folders import RunFolders


def exchange_of(settings: Settings, study: Study) -> Exchange:
    """How this process sees the plans of others.

    Errors: UserError where the store cannot be reached.
    """
    models = settings.study.folder / "trials"
    if settings.study.results == "folder":
        return Exchange(study, models)
    uri = settings.tracking.arguments.get("uri")
    experiment = settings.tracking.arguments.get("experiment")
    if not isinstance(uri, str) or not isinstance(experiment, str):
        raise ConfigError(
            "study.results=mlflow keeps plans where the study is tracked; take tracking=mlflow"
        )
    store = RunFolders(uri, experiment, study.user_attrs["id"], settings.study.storage_patience)
    store.open(settings.study.name)
    return Exchange(study, models, store)
