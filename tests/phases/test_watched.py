"""Batches that are looked at from inside."""

from __future__ import annotations

from lightning_modules.phases.watched import WatchedBatches


def test_every_batch_of_every_pass_is_checked() -> None:
    checked: list[int] = []
    batches = WatchedBatches(["a", "b", "c"], lambda: checked.append(1))
    assert (len(batches), batches[1], len(checked)) == (3, "b", 0)
    for passes in (1, 2):
        assert list(batches) == ["a", "b", "c"]
        assert len(checked) == 3 * passes
