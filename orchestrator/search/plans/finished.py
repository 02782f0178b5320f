"""Finished plans on disk, from which others may inherit.

A plan is a folder with `plan.json` and `weights.safetensors`.
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
    """A finished trial as others see it.

    `keep` has shape (n_units,) in dense units. `has` holds the units kept per group, then the share
    of weights kept per tensor; shape (n_groups + n_tensors,). `sparse` names the tensors with
    weights at zero. `macs` are effective ones and leave activations out, which a child does not
    inherit. `trained_rounds` are those in its weights, its ancestors' included; `weights` is the
    sha256 of its file, None where it is not known.
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
    """The cheapest finished plan that contains what is wanted; None: the dense model.

    It has at least what is wanted of everything, and more of one. Ties in cost go to the weights
    that have been trained for longer, then to the later trial.
    """

    def order(plan: Finished) -> tuple[int, int, int]:
        return (plan.macs, -plan.trained_rounds, -plan.number)

    fits = []
    for plan in finished:
        contains = (plan.has >= wanted - 1e-9).all()
        larger = (plan.has > wanted + 1e-9).any()
        if contains and larger:
            fits.append(plan)
    return min(fits, key=order, default=None)


def save_plan(folder: Path, document: Mapping[str, Any], model: nn.Module) -> None:
    """Save weights, then the plan: a folder with a plan is whole."""
    write_atomic(folder / WEIGHTS, save(tensors(model)))
    save_document(folder, document)


def save_document(folder: Path, document: Mapping[str, Any]) -> None:
    """Save the plan beside its weights, with the digests of the exported files there."""
    exports = {}
    for entry in EXPORT_FORMATS.values():
        path = folder / entry.file
        if path.exists():
            exports[path.name] = sha256_of(path)
    write_atomic(folder / PLAN, json.dumps({**document, "exports": exports}, indent=1))


def read_plan(folder: Path) -> dict[str, Any]:
    """The document of the plan in a folder.

    Errors: DataError where the folder holds no whole plan.
    """
    remedy = (
        f"a pruned model is a folder with {PLAN} and {WEIGHTS}; the command of its study sets "
        "a damaged one aside"
    )
    return read_document(folder / PLAN, remedy)


def load_finished(folder: Path, structure: Structure, weights: Sequence[str] = ()) -> Finished:
    """The finished plan in a folder; `weights` are the tensors that may be sparse.

    Errors: DataError where the units are not those of this model.
    """
    document = read_plan(folder)
    try:
        keep = keep_from_json(document["keep"], structure)
        shares = [float(document["shares"].get(name, 1.0)) for name in weights]
        macs = effective_macs(structure, keep, document["density"])
        sparse = tuple(document["shares"])
        lineage = lineage_in(document, folder / PLAN)
        return Finished(
            number=document["trial"],
            macs=macs,
            has=np.concatenate([structure.counts(keep).astype(float), shares]),
            keep=keep,
            ancestors=tuple(document["ancestors"]),
            sparse=sparse,
            trained_rounds=lineage.trained_rounds,
            weights=lineage.links[-1].weights or None,
        )
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
    dense = model.state_dict()
    try:
        shapes = state_shapes(model, structure, finished.keep)
    except PlanError as error:
        raise DataError(f"{folder / PLAN} does not fit this model: {error}") from error
    expected = {}
    for name, shape in shapes.items():
        expected[name] = torch.empty(shape, dtype=dense[name].dtype, device="meta")
    remedy = "give the same command again, which sets the trial aside"
    return read_weights(folder / WEIGHTS, expected, remedy, finished.weights)


def keep_to_json(structure: Structure, keep: Keep) -> dict[str, list[list[int]]]:
    """Kept units per group as runs [first, last + 1), counted within the group."""
    return {group.name: _runs(keep[group.units]) for group in structure.groups}


def keep_from_json(runs: Mapping[str, list[list[int]]], structure: Structure) -> Keep:
    """The inverse of `keep_to_json`."""
    keep = np.zeros(structure.n_units, dtype=np.bool_)
    names = {group.name for group in structure.groups}
    if set(runs) != names:
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
    padded = np.concatenate(([0], kept.astype(np.int8), [0]))
    edges = np.flatnonzero(np.diff(padded))
    runs: list[list[int]] = edges.reshape(-1, 2).tolist()
    return runs
