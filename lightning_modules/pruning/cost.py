"""MACs and parameters of a plan in closed form.

They are sums of products over kept counts: exact, and fast enough to search with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_modules.pruning.structure import Counts, Product, Structure

Matrix = npt.NDArray[Any]
Term = tuple[int, ...]
"""A product of axis lengths: the sorted indices of their affine forms."""
INT64_LIMIT = 2**62
"""Sums from here on are computed with Python's integers, which do not overflow."""


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
        """MACs of many plans; `counts` has shape (..., n_groups), the result (...)."""
        return np.asarray(self._macs(counts))

    def params_batch(self, counts: Counts) -> npt.NDArray[np.int64]:
        """Parameters of many plans; `counts` has shape (..., n_groups), the result (...)."""
        return np.asarray(self._params(counts))


class Lengths:
    """Lengths of axes as functions of the units kept per group.

    Each axis is its unit ids per position, -1 for a fixed one.
    """

    def __init__(self, structure: Structure, axes: Sequence[npt.NDArray[np.int32]]) -> None:
        forms = _Forms(structure)
        indices = [forms.index(axis) for axis in axes]
        self._matrix = forms.matrix()[indices]

    def __call__(self, counts: Counts) -> npt.NDArray[np.int64]:
        """Counts of shape (..., n_groups) give lengths of shape (..., n_axes)."""
        lengths: npt.NDArray[np.int64] = counts @ self._matrix[:, :-1].T + self._matrix[:, -1]
        return lengths


class _Sum:
    """A sum of products of affine forms.

    Equal factors are computed once, and products with equal factors are added up.
    """

    def __init__(self, structure: Structure, products: Sequence[Product]) -> None:
        forms = _Forms(structure)
        terms: dict[Term, int] = {}
        for product in products:
            term = tuple(sorted(map(forms.index, product.factors)))
            terms[term] = terms.get(term, 0) + product.constant
        self._fixed = terms.pop((), 0)
        dense = self._fixed
        for term, constant in terms.items():
            dense += constant * math.prod(map(forms.dense_length, term))
        dtype: Any = np.int64 if dense < INT64_LIMIT else object
        matrix = forms.matrix()
        self._slopes: Matrix = matrix[:, :-1].T.astype(dtype)
        self._offsets: Matrix = matrix[:, -1].astype(dtype)
        self._columns = _columns(list(terms), filler=len(forms.rows))
        self._constants: Matrix = np.array(list(terms.values()), dtype=dtype)

    def __call__(self, counts: Counts) -> Any:
        return self.terms(counts).sum(-1) + self._fixed

    def terms(self, counts: Counts) -> Any:
        """The summands that depend on the counts.

        `counts` has shape (..., n_groups), the result (..., n_terms).
        """
        lengths = counts @ self._slopes + self._offsets
        total: Any = self._constants
        for column in self._columns:
            total = total * lengths[..., column]
        return np.broadcast_to(total, (*lengths.shape[:-1], len(self._constants)))


def _columns(terms: Sequence[Term], filler: int) -> npt.NDArray[np.intp]:
    """The forms of every term, shape (longest term, n_terms); shorter terms end with `filler`."""
    width = max(map(len, terms), default=0)
    padded = []
    for term in terms:
        padding = [filler] * (width - len(term))
        padded.append([*term, *padding])
    return np.array(padded, dtype=np.intp).reshape(len(terms), width).T


class _Forms:
    """The distinct affine forms that give axis lengths.

    A form has the positions per unit of each group, followed by the number of fixed positions.
    """

    def __init__(self, structure: Structure) -> None:
        self._starts = [group.start for group in structure.groups]
        self._sizes = structure.sizes
        self._indices: dict[bytes, int] = {}
        self.rows: list[npt.NDArray[np.int64]] = []

    def index(self, factor: npt.NDArray[np.int32]) -> int:
        """The index of a factor's form, which is added if it is new."""
        units = factor[factor >= 0]
        groups = np.searchsorted(self._starts, units, side="right") - 1
        form = np.zeros(len(self._starts) + 1, dtype=np.int64)
        form[-1] = (factor < 0).sum()
        form[:-1] = np.bincount(groups, minlength=len(self._starts)) // self._sizes
        key = form.tobytes()
        if key not in self._indices:
            self._indices[key] = len(self.rows)
            self.rows.append(form)
        return self._indices[key]

    def dense_length(self, index: int) -> int:
        form = self.rows[index]
        return int(form[:-1] @ self._sizes + form[-1])

    def matrix(self) -> npt.NDArray[np.int64]:
        """All forms as rows; an additional last one is the constant 1, which pads terms."""
        one = np.zeros(len(self._starts) + 1, dtype=np.int64)
        one[-1] = 1
        return np.array([*self.rows, one], dtype=np.int64)


def prunable_macs_fraction(structure: Structure) -> float:
    """The share of the dense MACs in nodes with at least one prunable factor, in [0, 1]."""
    dense = prunable = 0
    for product in structure.macs:
        macs = product.constant * math.prod(map(len, product.factors))
        dense += macs
        if product.factors:
            prunable += macs
    return prunable / dense if dense else 0.0
