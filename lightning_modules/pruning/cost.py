"""MACs and parameters of a plan in closed form: products over kept counts, exact and fast enough to search with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_modules.pruning.structure import Counts, Product, Structure

Matrix = npt.NDArray[Any]


class Cost:
    """Costs as functions of the units kept per group, compiled once from a structure."""

    def __init__(self, structure: Structure) -> None:
        self._macs = _Sum(structure, structure.macs)
        self._params = _Sum(structure, structure.params)

    def macs(self, counts: Counts) -> int:
        """Multiply-accumulates at batch 1; `counts` has shape (n_groups,)."""
        return int(self._macs(counts))

    def params(self, counts: Counts) -> int:
        """Elements of all parameters, shared ones once; `counts` has shape (n_groups,)."""
        return int(self._params(counts))

    def macs_batch(self, counts: Counts) -> npt.NDArray[np.int64]:
        """The same for many plans; `counts` has shape (..., n_groups), the result (...)."""
        return np.asarray(self._macs(counts))

    def params_batch(self, counts: Counts) -> npt.NDArray[np.int64]:
        """The same for many plans; `counts` has shape (..., n_groups), the result (...)."""
        return np.asarray(self._params(counts))


class Features:
    """What a linear model of latency may weigh: every distinct product of axis lengths, as a share of the dense one.

    MACs of layers and elements of tensors are such products; layers that share theirs share a feature.
    """

    def __init__(self, structure: Structure) -> None:
        self._sum = _Sum(structure, [*structure.macs, *structure.params])
        self._dense = self._sum.terms(structure.sizes).astype(float)

    def __call__(self, counts: Counts) -> npt.NDArray[np.float64]:
        """Shape (..., n_features), each in [0, 1]; the last one is the constant 1."""
        shares = self._sum.terms(counts).astype(float) / self._dense
        found: npt.NDArray[np.float64] = np.concatenate(
            [shares, np.ones((*shares.shape[:-1], 1))], axis=-1
        )
        return found


class _Sum:
    """Sum of products of affine forms; equal factors are computed once, constants sit in front."""

    def __init__(self, structure: Structure, products: Sequence[Product]) -> None:
        starts = [group.start for group in structure.groups]
        forms: dict[bytes, int] = {}
        rows: list[npt.NDArray[np.int64]] = []
        terms: dict[tuple[int, ...], int] = {}
        for product in products:
            key = tuple(
                sorted(_intern(f, starts, structure.sizes, forms, rows) for f in product.factors)
            )
            terms[key] = terms.get(key, 0) + product.constant
        self._fixed = terms.pop((), 0)
        width = max((len(key) for key in terms), default=0)
        # One more form, the constant 1, fills up the shorter products.
        one = np.zeros(len(starts) + 1, dtype=np.int64)
        one[-1] = 1
        forms_matrix = np.array([*rows, one], dtype=np.int64)
        dense = self._fixed + sum(
            c * math.prod(int(rows[i][:-1] @ structure.sizes + rows[i][-1]) for i in key)
            for key, c in terms.items()
        )
        dtype: Any = np.int64 if dense < 2**62 else object
        self._slopes: Matrix = forms_matrix[:, :-1].T.astype(dtype)
        self._offsets: Matrix = forms_matrix[:, -1].astype(dtype)
        padded = [[*key, *[len(rows)] * (width - len(key))] for key in terms]
        self._columns = np.array(padded, dtype=np.intp).reshape(len(terms), width).T
        self._constants: Matrix = np.array(list(terms.values()), dtype=dtype)

    def __call__(self, counts: Counts) -> Any:
        return self.terms(counts).sum(-1) + self._fixed

    def terms(self, counts: Counts) -> Any:
        """The summands that depend on the counts; `counts` has shape (..., n_groups), the result (..., n_terms)."""
        lengths = counts @ self._slopes + self._offsets
        total: Any = self._constants
        for column in self._columns:
            total = total * lengths[..., column]
        return np.broadcast_to(total, (*lengths.shape[:-1], len(self._constants)))


def _intern(
    factor: npt.NDArray[np.int32],
    starts: list[int],
    sizes: Counts,
    forms: dict[bytes, int],
    rows: list[npt.NDArray[np.int64]],
) -> int:
    """The index of a factor's affine form: positions per unit of each group, then the fixed positions."""
    form = np.zeros(len(starts) + 1, dtype=np.int64)
    form[-1] = (factor < 0).sum()
    groups = np.searchsorted(starts, factor[factor >= 0], side="right") - 1
    form[:-1] = np.bincount(groups, minlength=len(starts)) // sizes
    key = form.tobytes()
    if key not in forms:
        forms[key] = len(rows)
        rows.append(form)
    return forms[key]


def prunable_macs_fraction(structure: Structure) -> float:
    """Share of the dense MACs in nodes with at least one prunable factor, in [0, 1]."""
    totals = [
        (p.constant * math.prod(len(f) for f in p.factors), bool(p.factors)) for p in structure.macs
    ]
    dense = sum(total for total, _ in totals)
    return sum(total for total, prunable in totals if prunable) / dense if dense else 0.0
