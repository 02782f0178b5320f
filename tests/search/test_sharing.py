"""The processes of a study share its confirmation: each model is one process's, once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import optuna
import pytest
from filelock import FileLock

from lightning_modules.errors import ConfigError
from orchestrator.progress import Progress
from orchestrator.search.confirmation import sharing
from orchestrator.search.confirmation.beside import Matches
from orchestrator.search.confirmation.final import Confirmation
from orchestrator.search.confirmation.sharing import SHARED, Shared, SharedConfirmation, take_part

NOTHING = cast(Any, None)
"""What the parts under test do not look at."""
MODELS = Shared("first", (3, 5), dense=True)


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study()


def confirmation(folder: Path) -> Confirmation:
    return Confirmation(NOTHING, NOTHING, folder, Progress(quiet=True))


def confirming(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None = None
) -> list[tuple[str, object]]:
    """What was confirmed, by its name and for which ladder or trial; trial 5 may fail."""
    made: list[tuple[str, object]] = []

    def trial(where: Confirmation, number: int) -> None:
        made.append(("trial", number))
        if error is not None and number == 5:
            raise error

    monkeypatch.setattr(sharing, "confirm_dense", lambda where: made.append(("dense", None)))
    monkeypatch.setattr(sharing, "confirm_trial", trial)
    monkeypatch.setattr(
        sharing, "climbed", lambda where, method, name, matches: made.append((name, matches))
    )
    return made


def take_all(study: optuna.Study, where: Confirmation) -> int:
    """How many this process took until nothing was left."""
    taken = 0
    while take_part(study, where, NOTHING):
        taken += 1
    return taken


def offered(study: optuna.Study, shared: Shared) -> None:
    study.set_user_attr(SHARED, asdict(shared))


def test_each_is_confirmed_once_the_longest_first(
    study: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = confirming(monkeypatch)
    offered(study, MODELS)
    assert take_all(study, confirmation(tmp_path)) == 3
    assert take_all(study, confirmation(tmp_path)) == 0
    assert made == [("dense", None), ("trial", 3), ("trial", 5)]


def test_what_another_process_is_at_is_left_to_it(
    study: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = confirming(monkeypatch)
    offered(study, MODELS)
    where = confirmation(tmp_path)
    (where.records / "shared").mkdir(parents=True)
    with FileLock(where.records / "shared" / "trial-3.lock"):
        assert take_all(study, where) == 2
    assert ("trial", 3) not in made
    assert take_all(study, where) == 1


def test_another_call_confirms_all_anew(
    study: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records say what is still valid; a mark of an earlier run does not."""
    confirming(monkeypatch)
    offered(study, MODELS)
    take_all(study, confirmation(tmp_path))
    offered(study, Shared("second", (3,)))
    assert take_all(study, confirmation(tmp_path)) == 1


def test_nothing_is_taken_where_nothing_is_shared(study: optuna.Study, tmp_path: Path) -> None:
    assert not take_part(study, confirmation(tmp_path), NOTHING)


def test_ladders_go_with_what_they_match(
    study: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = confirming(monkeypatch)
    matches = Matches((1, 2, 7), (1, 7))
    offered(study, Shared("first", ladders=("uniform", "global"), matches=matches))
    assert take_all(study, confirmation(tmp_path)) == 2
    assert made == [("uniform", matches), ("global", matches)]


def leader(
    study: optuna.Study, where: Confirmation, work: Callable[[], object]
) -> SharedConfirmation:
    return SharedConfirmation(study, where, work)


def test_the_leader_waits_for_all_and_knows_what_failed(
    study: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    confirming(monkeypatch, error=ValueError("no memory"))
    monkeypatch.setattr(sharing, "SETTLED_SECONDS", 0.0)
    helper = confirmation(tmp_path)
    own = confirmation(tmp_path)
    leader(study, own, lambda: take_part(study, helper, NOTHING)).share(MODELS)
    assert own.failed == helper.failed
    assert "no memory" in own.failed["trial-5"]
    assert (own.records / "trial-5.traceback.txt").exists()
    # helpers go back to waiting
    assert study.user_attrs[SHARED] is None


def test_a_mistake_of_the_users_ends_the_leader_and_offers_nothing_more(
    study: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    confirming(monkeypatch, error=ConfigError("a mistake"))
    where = confirmation(tmp_path)
    with pytest.raises(ConfigError, match="a mistake"):
        leader(study, where, lambda: take_part(study, where, NOTHING)).share(MODELS)
    assert study.user_attrs[SHARED] is None
