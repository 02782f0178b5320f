"""Finished plans on disk: `models/<trial>/plan.json` and `weights.safetensors`, from which others
may inherit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save
from torch import Tensor, nn

from lightning_modules.errors import DataError, PlanError
from lightning_modules.pruning.removal import state_shapes
from lightning_modules.pruning.structure import Keep, Structure
from lightning_modules.pruning.weights import effective_macs
from orchestrator.export.formats import EXPORT_FORMATS
from orchestrator.files import write_atomic
from orchestrator.search.plans.document import read_document
from orchestrator.search.plans.lineage import lineage_in, tensors
from orchestrator.search.plans.names import PLAN as PLAN
from orchestrator.search.plans.names import WEIGHTS as WEIGHTS
from orchestrator.stored import read_weights, sha256_of

Has = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Finished:
    """A finished trial as others see it; `keep` has shape (n_units,) in dense units, `macs` are
    effective ones.

    `has` holds the units kept per group, then the share of weights kept per tensor; shape (n_groups
    + n_tensors,). `sparse` names the tensors with weights at zero. `macs` leave activations out,
    which a child does not inherit; `trained_rounds` are those in its weights, its ancestors'
    included; `weights` is the sha256 of its file, None where it is not known.
    """

    number: int
    macs: int
    has: Has
    keep: Keep
    ancestors: tuple[int, ...]
    sparse: tuple[str, ...] = ()
    trained_rounds: int = 0
    weights: str | None = None


def nearest_parent(finished: list[Finished], wanted: Has) -> Finished | None:
    """The cheapest finished plan that has at least what is wanted of everything and more of one;
    None: the dense model.

    Ties in cost go to the weights that have been trained for longer, then to the later trial.
    """
    fits = [
        plan
        for plan in finished
        if (plan.has >= wanted - 1e-9).all() and (plan.has > wanted + 1e-9).any()
    ]
    return min(fits, key=lambda plan: (plan.macs, -plan.trained_rounds, -plan.number), default=None)


def save_plan(folder: Path, document: Mapping[str, Any], model: nn.Module) -> None:
    """Weights first: a folder with a plan is whole. The plan has the digests of the exported files
    that lie there.
    """
    write_atomic(folder / WEIGHTS, save(tensors(model)))
    paths = [folder / entry.file for entry in EXPORT_FORMATS.values()]
    exports = {path.name: sha256_of(path) for path in paths if path.exists()}
    write_atomic(folder / PLAN, json.dumps({**document, "exports": exports}, indent=1))


def read_plan(folder: Path) -> dict[str, Any]:
    """Errors: DataError where the folder holds no whole plan."""
    remedy = (
        f"a pruned model is a folder with {PLAN} and {WEIGHTS}; the command of its study sets "
        "a damaged one aside"
    )
    return read_document(folder / PLAN, remedy)


def load_finished(folder: Path, structure: Structure, weights: Sequence[str] = ()) -> Finished:
    """`weights` are the tensors that may be sparse. Errors: DataError where the units are not those
    of this model.
    """
    document = read_plan(folder)
    try:
        keep = keep_from_json(document["keep"], structure)
        shares = [float(document["shares"].get(name, 1.0)) for name in weights]
        has = np.concatenate([structure.counts(keep).astype(float), shares])
        macs = effective_macs(structure, keep, document["density"])
        sparse, lineage = tuple(document["shares"]), lineage_in(document, folder / PLAN)
        trained, digest = lineage.trained_rounds, lineage.links[-1].weights or None
        ancestors = tuple(document["ancestors"])
        return Finished(document["trial"], macs, has, keep, ancestors, sparse, trained, digest)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise DataError(
            f"{folder / PLAN} does not fit this model: {error!r}; was it written by another study?"
        ) from error


def finished_weights(
    folder: Path, finished: Finished, model: nn.Module, structure: Structure
) -> dict[str, Tensor]:
    """The weights of a finished plan of the dense `model`.

    Errors: DataError where they are not in the shapes that the plan gives, or not the bytes that
    were saved.
    """
    dense, path = model.state_dict(), folder / WEIGHTS
    try:
        shapes = state_shapes(model, structure, finished.keep)
    except PlanError as error:
        raise DataError(f"{folder / PLAN} does not fit this model: {error}") from error
    expected = {
        name: torch.empty(shape, dtype=dense[name].dtype, device="meta")
        for name, shape in shapes.items()
    }
    return read_weights(
        path, expected, "give the same command again, which sets the trial aside", finished.weights
    )


def keep_to_json(structure: Structure, keep: Keep) -> dict[str, list[list[int]]]:
    """Kept units per group as runs [first, last + 1), counted within the group."""
    return {group.name: _runs(keep[group.units]) for group in structure.groups}


def keep_from_json(runs: Mapping[str, list[list[int]]], structure: Structure) -> Keep:
    keep = np.zeros(structure.n_units, dtype=np.bool_)
    if set(runs) != {group.name for group in structure.groups}:
        raise ValueError("its groups are not the model's")
    for group in structure.groups:
        for first, end in runs[group.name]:
            if not 0 <= first < end <= group.size:
                raise ValueError(
                    f"units {first} to {end} of group '{group.name}' with {group.size}"
                )
            keep[group.start + first : group.start + end] = True
    return keep


def _runs(kept: npt.NDArray[np.bool_]) -> list[list[int]]:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], kept.astype(np.int8), [0]))))
    runs: list[list[int]] = edges.reshape(-1, 2).tolist()
    return runs
