"""Many facts about one thing that is dear to make: all are tried, and those that fail are named."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def hold(facts: Iterable[Callable[..., None]], *about: Any) -> None:
    """Each of `facts`, a function that asserts, is true of `about`; its name says what it
    states.
    """
    wrong, known = [], list(facts)
    for fact in known:
        try:
            fact(*about)
        except AssertionError as error:
            wrong.append(f"{fact.__name__}: {error}")
        except Exception as error:
            error.add_note(f"while trying: {fact.__name__}")
            raise
    assert not wrong, "\n".join([f"{len(wrong)} of {len(known)} facts do not hold", *wrong])
