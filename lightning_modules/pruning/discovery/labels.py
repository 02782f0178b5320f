"""Identities of positions, in a union-find.

Its classes carry the reasons why they are fixed, and marks of what they pass through.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Label = Ids | str
"""One dimension of a traced tensor: an id per position, or the reason why it is fixed.

The reason is "" if there is none.
"""
Dims = list[Label]
"""The label of each dimension of a tensor."""


class Labels:
    """Union-find over ids, a whole axis at a time; the root of a class is its smallest id."""

    def __init__(self) -> None:
        self._parent: Ids = np.arange(1024, dtype=np.int64)
        self._size = 0
        self._marks: dict[str, list[Ids]] = {}
        self._frozen: list[tuple[Ids, str]] = []

    def new(self, count: int) -> Ids:
        """New ids, each a class of its own; shape (count,)."""
        while self._size + count > len(self._parent):
            old = len(self._parent)
            more = np.arange(old, 2 * old, dtype=np.int64)
            self._parent = np.concatenate([self._parent, more])
        first = self._size
        self._size += count
        return np.arange(first, self._size, dtype=np.int64)

    def roots(self, ids: Ids) -> Ids:
        """The representative of each id; same shape as `ids`."""
        root = self._parent[ids]
        while True:
            above = self._parent[root]
            if np.array_equal(above, root):
                self._parent[ids] = root
                return root
            root = above

    def union(self, left: Ids, right: Ids) -> None:
        """Join the classes position by position; `left` and `right` broadcast."""
        left, right = np.broadcast_arrays(left, right)
        left = left.ravel()
        right = right.ravel()
        while True:
            a = self.roots(left)
            b = self.roots(right)
            apart = a != b
            if not apart.any():
                return
            low = np.minimum(a, b)[apart]
            high = np.maximum(a, b)[apart]
            # A root is only ever hooked to a smaller root, so no cycle can arise. A root that meets
            # several others is hooked to the smallest; the loop joins the rest.
            np.minimum.at(self._parent, high, low)

    def tie(self, rows: Ids) -> None:
        """Make each row of ids one class; shape (classes, ids per class)."""
        self.union(rows[:, :1], rows[:, 1:])

    def freeze(self, ids: Ids, reason: str) -> None:
        """Fix the classes of `ids`."""
        self._frozen.append((ids.ravel(), reason))

    def mark(self, ids: Ids, name: str) -> None:
        """Give the classes of `ids` a mark, e.g. "inexact", "head" or "conv_group"."""
        self._marks.setdefault(name, []).append(ids.ravel())

    def reasons(self) -> list[str | None]:
        """Per id the first reason given why its class is frozen; None if it is free."""
        by_root: dict[int, str] = {}
        for ids, reason in self._frozen:
            for root in np.unique(self.roots(ids)).tolist():
                by_root.setdefault(root, reason)
        return [by_root.get(root) for root in self._all_roots().tolist()]

    def _all_roots(self) -> Ids:
        """The representative of every id so far."""
        return self.roots(np.arange(self._size, dtype=np.int64))

    def frozen(self, ids: Ids) -> str | None:
        """The reason why every one of `ids` is frozen; None if at least one is free."""
        roots = self.roots(ids)
        free = np.ones(len(ids), dtype=np.bool_)
        first = None
        for other, reason in self._frozen:
            hit = np.isin(roots, self.roots(other))
            if hit.any():
                first = first or reason
                free &= ~hit
        if free.any():
            return None
        return first or "an empty axis"

    def marked(self, name: str) -> npt.NDArray[np.bool_]:
        """Per id, whether its class has the mark; shape (ids so far,)."""
        marked_ids = self._marks.get(name, [])
        if not marked_ids:
            return np.zeros(self._size, dtype=np.bool_)
        return np.isin(self._all_roots(), self.roots(np.concatenate(marked_ids)))
