"""Build a model once more from the dense checkpoint, link by link.

The replay says whether its weights are the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_modules.data.contract import ready_data
from lightning_modules.errors import ConfigError, DataError, PlanError
from lightning_modules.phases.formats import FORMATS, channels_last_fault
from lightning_modules.pruning.plan import Plan
from lightning_modules.pruning.weights import densities
from orchestrator.progress import Progress
from orchestrator.report.tables import show, summary_table
from orchestrator.search.confirmation.confirm import Candidate, finetuned
from orchestrator.search.lab.lab import Lab
from orchestrator.search.lab.prepare import prepare
from orchestrator.search.plans.finished import PLAN, WEIGHTS, read_plan
from orchestrator.search.plans.lineage import (
    Lineage,
    Link,
    differences,
    lineage_in,
    made_with,
    recipe_of,
    tensors,
    weights_digest,
)
from orchestrator.search.plans.trust import require_own, targets
from orchestrator.search.trials.evaluate import begun
from orchestrator.search.trials.run_plan import run_plan
from orchestrator.search.trials.working import Working
from orchestrator.settings import MethodSettings, Settings
from orchestrator.stored import sha256_of


@dataclass(frozen=True)
class Step:
    """One link of a replay, compared with the weights it had.

    `difference` is the largest one, infinite where other units were kept, and None where the
    weights are no longer at hand. `otherwise` says what differed around the training.
    """

    name: str
    identical: bool
    difference: float | None = None
    otherwise: str = ""

    def text(self) -> str:
        """Identical or how far away, in words."""
        if self.identical:
            return f"identical, although {self.otherwise}" if self.otherwise else "identical"
        if self.difference is None:
            distance = "the weights are not at hand to compare"
        elif self.difference == math.inf:
            distance = "other units were kept"
        else:
            distance = f"by up to {self.difference:.3g}"
        text = f"different: {distance}"
        return f"{text}, {self.otherwise}" if self.otherwise else text


@dataclass(frozen=True)
class Replay:
    """The steps of a replay and the `model` that came out.

    The dense model comes first, then the trials of the lineage, then the confirmation.
    """

    steps: tuple[Step, ...]
    model: nn.Module

    @property
    def identical(self) -> bool:
        """Whether every link's weights are the same bit for bit."""
        return self.first_different is None

    @property
    def first_different(self) -> Step | None:
        """The first link whose weights are not the same."""
        for step in self.steps:
            if not step.identical:
                return step
        return None


def replay_or_fail(settings: Settings, model: str) -> Replay:
    """`replay` for the command line.

    Errors: DataError where a link's weights are not the same bit for bit.
    """
    replayed = replay(settings, model)
    lines = [(step.name, step.text()) for step in replayed.steps]
    show(summary_table(f"replay of {model}", lines))
    first = replayed.first_different
    if first is not None:
        raise DataError(
            f"a replay must give the same weights bit for bit; {model} differs from '{first.name}' "
            f"on, {first.text()}; bits repeat on the CPU with the same torch and threads: give "
            "threads=N and memory_format as they were, and the data as it was"
        )
    return replayed


def replay(settings: Settings, folder: str | Path) -> Replay:
    """The model in `folder`, made anew from the dense model and its plans.

    It is an exported model or a finished trial; nothing else of its study is needed. Errors:
    ConfigError where the settings are not those it was made with, DataError for a folder without a
    lineage.
    """
    at = Path(folder)
    document = read_plan(at)
    if "origin" in document:
        raise ConfigError(
            f"{at} holds the model of the baseline '{document['origin']}', which has no chain of "
            f"plans; the command of its study makes it again (take trial {document['matches']}, "
            "to which it is matched, for a replay)"
        )
    lineage = lineage_in(document, at / PLAN)
    settings = settings.with_depth(bool(lineage.recipe["method"]["depth"]))
    _require_same(settings, lineage)
    with Progress(quiet=settings.quiet) as progress:
        data = ready_data(settings.data)
        lab = prepare(settings, data, progress).lab
        return _Replayer(settings, lab, at, progress).run(lineage, document.get("confirmation"))


@dataclass
class _Replayer:
    """The lineage of a model at work.

    `lab` is in the memory format in which the last link was made.
    """

    settings: Settings
    lab: Lab
    folder: Path
    progress: Progress

    def run(self, lineage: Lineage, confirmation: Mapping[str, Any] | None) -> Replay:
        steps = self._dense_steps(lineage)
        working = Working(self.lab.facts.model, self.lab.facts.structure.full())
        n_links = len(lineage.links)
        for number, link in enumerate(lineage.links, start=1):
            self.progress.phase(f"trial {link.trial}", f"link {number} of {n_links}")
            if number > 1:
                working = self._inherited(working)
            working, step = self._link(lineage, link, working)
            steps.append(step)
        model = working.model
        if confirmation is not None:
            self.progress.phase("confirmation", f"seed {confirmation['seed']}")
            model, step = self._confirmation(lineage.links[-1], working, confirmation)
            steps.append(step)
        return Replay(tuple(steps), model.eval())

    def _dense_steps(self, lineage: Lineage) -> list[Step]:
        facts = self.lab.facts
        steps = [_dense("dense model", facts.model, lineage.dense)]
        if lineage.rewound is not None and facts.rewound is not None:
            steps.append(_dense("rewound weights", facts.rewound, lineage.rewound))
        return steps

    def _inherited(self, working: Working) -> Working:
        """The working model as a trial inherits it.

        It is read from tensors, without an optimizer's state.
        """
        sparse = tuple(densities(working.model, working.masks))
        return begun(self.lab, tensors(working.model), working.alive, sparse)

    def _link(self, lineage: Lineage, link: Link, working: Working) -> tuple[Working, Step]:
        self.lab = _as_made(self.settings, self.lab, link.made_with)
        working = _again(self.settings, self.lab, lineage, link, working)
        before = _had(self.folder, link)
        name = f"trial {link.trial}"
        return working, _compared(
            name, self.lab, working.model, link.weights, link.made_with, before
        )

    def _confirmation(
        self, link: Link, working: Working, confirmation: Mapping[str, Any]
    ) -> tuple[nn.Module, Step]:
        made = confirmation["made_with"]
        digest = confirmation["weights"]
        self.lab = _as_made(self.settings, self.lab, made)
        model = _confirmed(self.lab, self._inherited(working), working, link, confirmation)
        name = f"confirmation, seed {confirmation['seed']}"
        before = _weights(self.folder, digest)
        return model, _compared(name, self.lab, model, digest, made, before)


def _require_same(settings: Settings, lineage: Lineage) -> None:
    """Checks the recipe, except for the folder of its data.

    Folders move, and the weights show whether they held the same data.
    Errors: ConfigError for another recipe.
    """
    old = dict(lineage.recipe)
    new = recipe_of(settings)
    for recipe in (old, new):
        recipe["data"] = recipe["data"]["_target_"]
    changes = differences(old, new)
    if changes:
        raise ConfigError(
            f"a model is replayed with the settings it was made with: {'; '.join(changes)}. Give "
            "the values it had: the same +experiment and overrides as the search"
        )


def _as_made(settings: Settings, lab: Lab, made: Mapping[str, Any]) -> Lab:
    """The lab in the memory format in which a link was made.

    Links of the time before there was a choice were made in the usual one. A format that the
    settings name goes first. The link's is not used where it would corrupt memory on this device;
    the replay then says that the format was another.
    """
    memory_format = made.get("memory_format", "contiguous")
    if settings.memory_format != "auto" or memory_format not in FORMATS:
        return lab
    if memory_format == "channels_last" and channels_last_fault(lab.facts.model, lab.device):
        return replace(lab, memory_format="contiguous")
    return replace(lab, memory_format=memory_format)


def _again(settings: Settings, lab: Lab, lineage: Lineage, link: Link, working: Working) -> Working:
    """One trial carried out once more.

    Errors: DataError where the guard now ends it, which it did not before; for a plan that is none;
    and for one whose method would run code that neither this program nor the settings name.
    """
    try:
        plan = Plan.from_json(link.plan)
        plan.counts(lab.facts.structure)
        plain = lineage.methods[link.method]
        method = MethodSettings.model_validate(plain)
    except (ValueError, KeyError, IndexError, PlanError) as error:
        raise DataError(
            f"the plan of trial {link.trial} does not fit this model: {error!r}"
        ) from error
    require_own(targets(plain) - targets(settings.method.plain()), f"trial {link.trial}")
    outcome = run_plan(lab, method, plan, working, lambda *_: None)
    if outcome.reason:
        raise DataError(
            f"trial {link.trial} was completed and must be again; the replay was stopped: "
            f"{outcome.reason}"
        )
    return outcome.working


def _confirmed(
    lab: Lab, inherited: Working, working: Working, link: Link, record: Mapping[str, Any]
) -> nn.Module:
    candidate = Candidate(
        "replay",
        inherited.model,
        working.alive,
        None,
        tuple(densities(working.model, working.masks)),
        link.plan["activation"],
        round_steps=record.get("round_steps"),
        accumulate=record.get("accumulate", link.plan["timing"].get("accumulate", 1)),
    )
    return finetuned(lab, candidate, record["seed"], record["rounds"], record["lr_factor"])


def _dense(name: str, model: nn.Module, digest: str) -> Step:
    return Step(name, weights_digest(model) == digest)


def _compared(
    name: str,
    lab: Lab,
    model: nn.Module,
    digest: str,
    made: Mapping[str, Any],
    before: Mapping[str, Tensor] | None,
) -> Step:
    then = {"memory_format": "contiguous", **made}
    changed = []
    for key, value in made_with(lab.device, lab.memory_format).items():
        if then.get(key) != value:
            changed.append(f"{key} was {then.get(key)}, now {value}")
    step = Step(name, weights_digest(model) == digest, otherwise="; ".join(changed))
    if step.identical:
        return replace(step, difference=0.0)
    if before is None:
        return step
    return replace(step, difference=_difference(tensors(model), before))


def _difference(now: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> float:
    """The largest absolute one; infinite where the shapes are not the same."""
    shapes_now = {name: tensor.shape for name, tensor in now.items()}
    shapes_before = {name: tensor.shape for name, tensor in before.items()}
    if shapes_now != shapes_before:
        return math.inf
    differences = []
    for name, tensor in before.items():
        if tensor.numel():
            differences.append(float((now[name].double() - tensor.double()).abs().max()))
    return max(differences)


def _had(folder: Path, link: Link) -> dict[str, Tensor] | None:
    """The weights that a link had, where its study is still there."""
    trial = str(link.trial)
    for candidate in (folder, folder.parent / trial, folder.parent.parent / "trials" / trial):
        weights = _weights(candidate, link.weights)
        if weights is not None:
            return weights
    return None


def _weights(folder: Path, digest: str) -> dict[str, Tensor] | None:
    """The weights in a folder, where they are those of the digest."""
    path = folder / WEIGHTS
    if not path.is_file() or sha256_of(path) != digest:
        return None
    try:
        weights: dict[str, Tensor] = load_file(path)
    except SafetensorError:
        # the plan names the digest of a file that holds no weights
        return None
    return weights
