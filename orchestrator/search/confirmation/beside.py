"""The ladders beside the front: run, confirmed, exported, and on the front where they are ahead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lightning_modules.pruning.structure import dropped
from lightning_modules.pruning.weights import densities, effective_macs
from orchestrator.costs import with_ratios
from orchestrator.results.quantities import axis_words
from orchestrator.results.rows import ConfirmedRow
from orchestrator.search.confirmation.confirm import Candidate, Confirmed, confirmed_before
from orchestrator.search.confirmation.final import (
    Confirmation,
    confirmation_record,
    confirmed_row,
    require_loads,
)
from orchestrator.search.confirmation.ladders import LadderStep, Name, climb
from orchestrator.search.front import spread_out
from orchestrator.search.goals import Goals
from orchestrator.search.plans.finished import (
    PLAN,
    keep_from_json,
    keep_to_json,
    read_plan,
    save_plan,
)
from orchestrator.search.plans.lineage import lineage_in
from orchestrator.search.trials.methods import PreparedMethod
from orchestrator.search.trials.pruners import WeightPruner

SAME_COST = 1.02
"""A model of a ladder is matched to one of the front, whose cost it has up to rounding."""
OF_THE_NETWORK = ("format", "model", "network", "inputs", "attention")
"""What `plan.json` of a trial says of the network that is pruned."""
Afford = Callable[[str, Sequence[LadderStep], Sequence[LadderStep]], bool]
"""Maps a ladder's name, its steps, and its confirmed steps to whether it ends within the budget."""


def run_baselines(
    confirmation: Confirmation,
    method: PreparedMethod,
    front: list[ConfirmedRow],
    afford: Afford = lambda name, ladder, confirmed: True,
) -> list[ConfirmedRow]:
    """Ladders with a step at each of the front's models; some steps are confirmed.

    A step has the MACs of its model, and its steps of finetuning. A ladder that a budget in time
    cannot `afford` is left out.
    """
    confirm = confirmation.final.lab.phases.confirm
    progress = confirmation.progress
    matches = matches_of(confirmation, front)
    ladder = [_ladder_step(confirmation, trial) for trial in matches.trials]
    confirmed = [step for step in ladder if step.trial in matches.confirmed]
    rows: list[ConfirmedRow] = []
    for name in confirm.baselines:
        label = f"baseline {name}"
        if label in confirmation.failed:
            # in another process of the study
            continue
        if not afford(name, ladder, confirmed):
            progress.phase(label, "left out: it would not end within study.budget")
            continue
        models = f"{len(ladder)} models at the front's FLOPs, {len(confirmed)} confirmed"
        progress.phase(label, models)
        with confirmation.left_out(label):
            rows += climbed(confirmation, method, name, matches)
    return rows


@dataclass(frozen=True)
class Matches:
    """The front's trials at whose costs a ladder has models, and those whose match is confirmed."""

    trials: tuple[int, ...]
    confirmed: tuple[int, ...]


def matches_of(confirmation: Confirmation, front: Sequence[ConfirmedRow]) -> Matches:
    """Every model of the front, and those among them whose matches are confirmed."""
    most = confirmation.final.lab.phases.confirm.max_baseline_models
    trials = tuple([row.trial for row in front if row.trial is not None])
    chosen = spread_out([float(row.cost) for row in front], most)
    return Matches(trials, tuple([trials[index] for index in chosen]))


def climbed(
    confirmation: Confirmation, method: PreparedMethod, name: Name, matches: Matches
) -> list[ConfirmedRow]:
    """One ladder, and a row for each of its models that is confirmed."""
    ladder = [_ladder_step(confirmation, trial) for trial in matches.trials]
    return _Ladder(confirmation, method, name, ladder).rows(set(matches.confirmed))


def _ladder_step(confirmation: Confirmation, trial: int) -> LadderStep:
    """The step of a ladder that matches the front's model of a trial.

    It has the effective MACs by units and weights, as ladders prune no activations.
    """
    structure = confirmation.facts.structure
    folder = confirmation.store.of(trial)
    document = read_plan(folder)
    keep = keep_from_json(document["keep"], structure)
    macs = effective_macs(structure, keep, document["density"])
    steps = lineage_in(document, folder).trained_steps
    return LadderStep(trial, macs, steps, document["plan"]["timing"].get("mixed"))


@dataclass(frozen=True)
class _Ladder:
    """One baseline, matched to the models of the front."""

    confirmation: Confirmation
    method: PreparedMethod
    name: Name
    ladder: Sequence[LadderStep]

    @property
    def source(self) -> list[Any]:
        """What its models follow from, as plain data."""
        steps = [astuple(step) for step in self.ladder]
        return [self.name, steps, self.method.settings.plain()]

    def rows(self, matched: set[int]) -> list[ConfirmedRow]:
        """A row for each matched model; read back where all were confirmed before."""
        return self._before(matched) or self._climbed(matched)

    def _before(self, matched: set[int]) -> list[ConfirmedRow]:
        """Rows of an earlier run; empty where one of them is missing."""
        confirmation = self.confirmation
        rows = []
        for step in self.ladder:
            if step.trial not in matched:
                continue
            stored = confirmed_before(
                confirmation.final.lab,
                f"{self.name}-{step.trial}",
                confirmation.records,
                self.source,
                confirmation.round_steps,
            )
            if stored is None or not (self._folder(step) / PLAN).exists():
                return []
            rows.append(self._row(step, stored))
        return rows

    def _climbed(self, matched: set[int]) -> list[ConfirmedRow]:
        confirmation = self.confirmation
        lab = confirmation.final.lab
        facts = confirmation.facts
        words = axis_words(facts.axis)
        first = self.method.stages[0].pruner
        sparse = tuple(first.names) if isinstance(first, WeightPruner) else ()
        rows = []
        for step in self.ladder:
            if not (self._folder(step) / PLAN).exists():
                # a run was killed between confirming and exporting: confirming again exports again
                (confirmation.records / f"{self.name}-{step.trial}.json").unlink(missing_ok=True)
        for step, model, keep in climb(lab, self.method, self.name, self.ladder):
            share = step.macs / facts.dense_macs
            confirmation.progress.tick(f"{self.name}: the model at {share:.1%} of the {words}")
            if step.trial not in matched:
                continue
            candidate = Candidate(
                f"{self.name}-{step.trial}",
                model,
                keep,
                self.source,
                sparse,
                round_steps=confirmation.round_steps,
            )
            result, smaller = confirmation.confirmed(candidate)
            if smaller is not None:
                self._export(step, candidate, result, smaller)
            rows.append(self._row(step, result))
        return rows

    def _folder(self, step: LadderStep) -> Path:
        return self.confirmation.folder / "models" / f"{self.name}-{step.trial}"

    def _row(self, step: LadderStep, result: Confirmed) -> ConfirmedRow:
        facts = self.confirmation.facts
        method = self.method.settings.name
        return confirmed_row(facts, self.name, step.trial, result, method, str(self._folder(step)))

    def _export(
        self, step: LadderStep, candidate: Candidate, result: Confirmed, model: nn.Module
    ) -> None:
        """The seed that validated best, as a folder that `load_pruned` reads."""
        confirmation = self.confirmation
        facts = confirmation.facts
        structure = facts.structure
        kept = structure.counts(candidate.keep)
        document = read_plan(confirmation.store.of(step.trial))
        plan = {
            **{name: document.get(name) for name in OF_THE_NETWORK},
            "origin": self.name,
            "method": self.method.settings.name,
            "matches": step.trial,
            "macs": facts.cost.macs(kept),
            "params": facts.cost.params(kept),
            "keep": keep_to_json(structure, candidate.keep),
            "density": densities(model, candidate.sparse),
            "dropped": list(dropped(structure, candidate.keep)),
            **confirmation_record(confirmation, result, model),
        }
        folder = self._folder(step)
        save_plan(folder, plan, model)
        require_loads(folder, model, facts.prices.example)


def with_ladders(
    goals: Goals, front: Sequence[ConfirmedRow], baselines: Sequence[ConfirmedRow]
) -> list[ConfirmedRow]:
    """The front, and the models of ladders that are ahead of it on validation data.

    Such a model is better than each of the front that costs no more, within bounds, and no other
    model of a ladder is better at no more cost. Without it a table would show a baseline ahead of
    the front that a user is handed.
    """
    joined = list(front)
    for row in sorted(baselines, key=lambda row: -_validated(goals, row)):
        if row.path and not goals.broken(_values(row)) and _ahead(goals, row, joined):
            joined.append(row)
    return joined


def _ahead(goals: Goals, row: ConfirmedRow, others: Sequence[ConfirmedRow]) -> bool:
    """Whether the model is better than each that is at most as large in every cost."""
    for other in others:
        no_larger = [other.costs[cost] <= SAME_COST * row.costs[cost] for cost in goals.costs]
        if all(no_larger) and _validated(goals, other) >= _validated(goals, row):
            return False
    return True


def _validated(goals: Goals, row: ConfirmedRow) -> float:
    """The mean quality on validation data; large is good."""
    return goals.sign * row.validation[goals.quality]


def _values(row: ConfirmedRow) -> dict[str, float]:
    return {**row.validation, **with_ratios(row.costs, row.ratios)}
