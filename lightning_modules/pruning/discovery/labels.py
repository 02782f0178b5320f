"""Identities of positions: a union-find whose classes carry why they are fixed and what they pass through."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Label = Ids | str
"""One dimension of a traced tensor: an id per position, or the reason why it is fixed ("" if it has none)."""
Dims = list[Label]


class Labels:
    """Union-find over ids, a whole axis at a time; the root of a class is its smallest id."""

    def __init__(self) -> None:
        self._parent: Ids = np.arange(1024, dtype=np.int64)
        self._size = 0
        self._marks: dict[str, list[Ids]] = {}
        self._frozen: list[tuple[Ids, str]] = []

    def new(self, count: int) -> Ids:
        """Fresh ids, each a class of its own; shape (count,)."""
        while self._size + count > len(self._parent):
            old = len(self._parent)
            self._parent = np.concatenate([self._parent, np.arange(old, 2 * old, dtype=np.int64)])
        self._size += count
        return np.arange(self._size - count, self._size, dtype=np.int64)

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
        """Join position by position; `left` and `right` broadcast against each other."""
        left, right = np.broadcast_arrays(left, right)
        left, right = left.ravel(), right.ravel()
        while True:
            a, b = self.roots(left), self.roots(right)
            apart = a != b
            if not apart.any():
                return
            low, high = np.minimum(a, b)[apart], np.maximum(a, b)[apart]
            # A root only ever hooks to a smaller root, so no cycle can arise; ties are settled next round.
            np.minimum.at(self._parent, high, low)

    def freeze(self, ids: Ids, reason: str) -> None:
        self._frozen.append((ids.ravel(), reason))

    def mark(self, ids: Ids, name: str) -> None:
        """Attach a property to the classes of `ids`, e.g. "inexact", "head", "conv_group"."""
        self._marks.setdefault(name, []).append(ids.ravel())

    def reasons(self) -> list[str | None]:
        """Per id: why its class is frozen, by the first reason given; None if it is free."""
        by_root: dict[int, str] = {}
        for ids, reason in self._frozen:
            for root in np.unique(self.roots(ids)).tolist():
                by_root.setdefault(root, reason)
        roots = self.roots(np.arange(self._size, dtype=np.int64))
        return [by_root.get(root) for root in roots.tolist()]

    def frozen(self, ids: Ids) -> str | None:
        """The reason why every one of `ids` is frozen, None if at least one is free."""
        roots, free, first = self.roots(ids), np.ones(len(ids), dtype=np.bool_), None
        for other, reason in self._frozen:
            hit = np.isin(roots, self.roots(other))
            if hit.any():
                first = first or reason
                free &= ~hit
        return None if free.any() else first or "an empty axis"

    def marked(self, name: str) -> npt.NDArray[np.bool_]:
        """Per id: whether its class carries the mark; shape (ids so far,)."""
        roots = self.roots(np.arange(self._size, dtype=np.int64))
        events = self._marks.get(name, [])
        if not events:
            return np.zeros(self._size, dtype=np.bool_)
        return np.isin(roots, self.roots(np.concatenate(events)))
