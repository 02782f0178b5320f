"""Failures: a second try with less memory, a deadline, and when a study ends for its failures.

The reason of a failed trial says why it failed, and its traceback is an artifact; the study goes
on.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from lightning_modules.errors import TrialTimeoutError, UserError
from lightning_modules.phases.fit import DivergedError
from lightning_modules.phases.memory import out_of_memory, release_memory
from lightning_modules.pruning.plan import Plan
from orchestrator.search.plans.measurement import Measurement
from orchestrator.settings.budget import Budget

HALVED = "retried with half the batch after out of memory"
FEWEST_ENDED = 5
"""Trials that must have ended before a share of failures says anything."""

SMALLER = (
    "take a smaller phases.{}.optimizer.lr, or where memory is short a smaller data.batch_size"
)
"""Remedy for training that fails; the placeholder is the phase."""
Result = TypeVar("Result")
Ending = tuple[str, str]
"""(state, reason) of a trial; ("", "") before it has ended."""


def sparing_memory(
    attempt: Callable[[Plan], Measurement], plan: Plan, on_out_of_memory: Literal["halve", "fail"]
) -> Measurement:
    """The attempt, made once more with half the batch where memory ran out.

    The measurement's reason and plan say so. Gradients are accumulated over both halves, so that a
    step sees the same samples and weighs them alike (except that of a batch of odd size one is
    weighed differently). Batch norms see half a batch then, and dropout other draws: the trial is
    not the one that the whole batch would have given. This is why its plan says so
    (`timing.accumulate`) and a replay does the same.
    """
    timing = plan.timing

    def in_parts(parts: int) -> Measurement:
        return attempt(replace(plan, timing=replace(timing, accumulate=parts)))

    measured, parts = in_smaller_parts(in_parts, timing.accumulate, on_out_of_memory)
    if parts == timing.accumulate:
        return measured
    reason = f"{measured.reason}; {HALVED}" if measured.reason else HALVED
    return replace(measured, reason=reason)


def in_smaller_parts(
    attempt: Callable[[int], Result], parts: int, on_out_of_memory: Literal["halve", "fail"]
) -> tuple[Result, int]:
    """The result of the attempt with batches in `parts` pieces, and the number of pieces.

    Where memory ran out there are twice as many.
    """
    try:
        return attempt(parts), parts
    except Exception as error:
        if on_out_of_memory == "fail" or not out_of_memory(error):
            raise
    release_memory()
    try:
        return attempt(2 * parts), 2 * parts
    except Exception as error:
        error.add_note(HALVED)
        raise


@contextmanager
def needed(training: str, remedy: str) -> Iterator[None]:
    """Around training without which there is no study.

    Errors: UserError for a loss that is not finite, or too little memory.
    """
    try:
        yield
    except Exception as error:
        if not (isinstance(error, DivergedError) or out_of_memory(error)):
            raise
        raise UserError(f"{training} must come to its end; {reason_of(error)}; {remedy}") from error


@dataclass(frozen=True)
class Deadline:
    """When a trial's time is over.

    It is checked at each batch of scoring, finetuning, validation and recalibration. It does not
    interrupt one call that does not return (a kernel, a data loader that hangs, user code in a
    batch), scores that need no data, measuring latency and exporting; the trial ends at its next
    batch, or not at all.
    """

    limit: Budget
    begin: float
    now: Callable[[], float] = time.monotonic

    def __call__(self) -> None:
        """Errors: TrialTimeoutError after the limit."""
        if self.now() - self.begin > self.limit.amount:
            raise TrialTimeoutError(
                f"timeout: a trial must end within study.trial_timeout={self.limit.text}; raise "
                "it, or take fewer steps (space.rounds, phases.finetune.round_steps)"
            )


def reason_of(error: Exception) -> str:
    """One message: what went wrong and what was tried.

    The kind of the error is named unless it is a mistake of the user's.
    """
    text = str(error)
    if not isinstance(error, UserError):
        text = f"{type(error).__name__}: {error}".removesuffix(": ")
    if out_of_memory(error):
        text = f"out of memory: {text}"
    return "; ".join([text, *getattr(error, "__notes__", ())])


def check_failures(last: Ending, own: Sequence[Ending], most: float) -> None:
    """Ends a study of which more than the share `most` of the ended trials failed.

    It is called after each trial with its outcome and those of all of the study's own trials. Only
    a failed trial counts as an occasion: a study whose cause of failure was mended goes on, however
    much failed before.
    Errors: UserError when too many trials failed.
    """
    if last[0] != "failed":
        return
    release_memory()
    n_ended = 0
    reasons = []
    for state, reason in own:
        if state:
            n_ended += 1
        if state == "failed":
            reasons.append(reason)
    if n_ended < FEWEST_ENDED or len(reasons) <= most * n_ended:
        return
    times, reason = most_common(reasons)
    raise UserError(
        f"{len(reasons)} of {n_ended} trials failed, a larger share than "
        f"study.max_failures={most:g}; the most common reason ({times} times): {reason}; mend it "
        "and give the same command again, or study.max_failures=1"
    )


def most_common(reasons: Sequence[str]) -> tuple[int, str]:
    """How often the most common reason occurs, and the last such reason.

    Reasons that differ only in numbers (a step, bytes, a loss) are the same.
    """
    kinds = [re.sub(r"\d[\d.,e+-]*", "#", reason) for reason in reasons]
    common, times = Counter(kinds).most_common(1)[0]
    last = ""
    for reason, kind in zip(reasons, kinds, strict=True):
        if kind == common:
            last = reason
    return times, last
