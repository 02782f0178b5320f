"""What fails: a second try with less memory, an end by the clock, and when so many trials fail that
the study ends.

Why a trial failed is its reason, and the traceback an artifact; the study goes on.
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
Found = TypeVar("Found")
Ending = tuple[str, str]
"""(state, reason) of a trial; ("", "") before it has ended."""


def sparing_memory(
    attempt: Callable[[Plan], Measurement], plan: Plan, how: Literal["halve", "fail"]
) -> Measurement:
    """The attempt, made once more with half the batch where memory ran out; seen in its reason and
    in its plan.

    Gradients are accumulated over both halves, so that a step sees the same samples and weighs them
    alike (all but, in a batch of odd size). Batch norms see half a batch then, and dropout other
    draws: the trial is not the one that the whole batch would have given, which is why its plan
    says so (`timing.accumulate`) and a replay does the same.
    """
    timing = plan.timing
    found, parts = in_smaller_parts(
        lambda parts: attempt(replace(plan, timing=replace(timing, accumulate=parts))),
        timing.accumulate,
        how,
    )
    halved = parts != timing.accumulate
    return (
        replace(found, reason="; ".join(filter(None, (found.reason, HALVED)))) if halved else found
    )


def in_smaller_parts(
    attempt: Callable[[int], Found], parts: int, how: Literal["halve", "fail"]
) -> tuple[Found, int]:
    """What the attempt gives with batches in `parts` pieces, or in twice as many where memory ran
    out; and how many.
    """
    try:
        return attempt(parts), parts
    except Exception as error:
        if how == "fail" or not out_of_memory(error):
            raise
    release_memory()
    try:
        return attempt(2 * parts), 2 * parts
    except Exception as error:
        error.add_note(HALVED)
        raise


@contextmanager
def needed(what: str, remedy: str) -> Iterator[None]:
    """For training without which there is no study.

    Errors: UserError for a loss that is not finite, or too little memory.
    """
    try:
        yield
    except Exception as error:
        if not (isinstance(error, DivergedError) or out_of_memory(error)):
            raise
        raise UserError(f"{what} must come to its end; {reason_of(error)}; {remedy}") from error


@dataclass(frozen=True)
class Deadline:
    """When a trial's time is over. Checked at each batch of scoring, finetuning, validation and
    recalibration.

    What it does not interrupt: one call that does not return (a kernel, a data loader that hangs,
    user code in a batch), scores that need no data, measuring latency and exporting; the trial ends
    at its next batch, or not at all.
    """

    limit: Budget
    begin: float
    now: Callable[[], float] = time.monotonic

    def __call__(self) -> None:
        """Errors: TrialTimeoutError after the limit."""
        if self.now() - self.begin > self.limit.amount:
            raise TrialTimeoutError(
                f"timeout: a trial must end within study.trial_timeout={self.limit.text}; raise "
                "it, or take fewer "
                "steps (space.rounds, phases.finetune.round_steps)"
            )


def reason_of(error: Exception) -> str:
    """One message: what went wrong, of which kind where it is no mistake of the user's, and what
    was tried.
    """
    text = (
        str(error)
        if isinstance(error, UserError)
        else f"{type(error).__name__}: {error}".removesuffix(": ")
    )
    text = f"out of memory: {text}" if out_of_memory(error) else text
    return "; ".join([text, *getattr(error, "__notes__", ())])


def check_failures(last: Ending, own: Sequence[Ending], most: float) -> None:
    """To be called after each trial with its outcome and those of all of the study's own trials.

    Looked at after a failed trial alone: a study whose cause of failure was mended goes on, however
    much failed before. Errors: UserError when more than the share `most` of the ended trials
    failed.
    """
    if last[0] != "failed":
        return
    release_memory()
    ended = [(state, reason) for state, reason in own if state]
    reasons = [reason for state, reason in ended if state == "failed"]
    if len(ended) < FEWEST_ENDED or len(reasons) <= most * len(ended):
        return
    times, reason = most_common(reasons)
    raise UserError(
        f"{len(reasons)} of {len(ended)} trials failed, a larger share than "
        f"study.max_failures={most:g}; the most "
        f"common reason ({times} times): {reason}; mend it and give the same command again, or "
        "study.max_failures=1"
    )


def most_common(reasons: Sequence[str]) -> tuple[int, str]:
    """(how often, the last of them); reasons that differ in numbers alone (a step, bytes, a loss)
    are the same.
    """
    kinds = [re.sub(r"\d[\d.,e+-]*", "#", reason) for reason in reasons]
    kind, times = Counter(kinds).most_common(1)[0]
    return times, next(
        reason
        for reason, same in zip(reversed(reasons), reversed(kinds), strict=True)
        if same == kind
    )
