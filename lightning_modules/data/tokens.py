"""Texts as numbers: bytes, frequent words, or the tokens of a Hugging Face tokenizer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_modules.errors import ConfigError

PAD = 0
"""What fills samples up to their length. As a byte it does not occur in texts."""
UNKNOWN = 1
"""Any word that is not among the frequent ones."""
WORD = re.compile(r"[^\W\d_]+")
"""Letters of any script; digits and signs are left out."""


@dataclass(frozen=True)
class Tokenizer:
    """`encode` gives the ids of a text's tokens; `pad` is the id that fills samples up."""

    encode: Callable[[str], list[int]]
    pad: int = PAD


def tokenizer(tokens: str | int, texts: Iterable[str]) -> Tokenizer:
    """By `tokens`: "bytes"; a number, for that many of the most frequent words of `texts`, with
    those that fill up and stand for all other words; or the folder of a Hugging Face tokenizer.

    Errors: ConfigError for anything else.
    """
    if tokens == "bytes":
        return Tokenizer(lambda text: list(text.encode("utf-8")))
    if isinstance(tokens, int):
        if tokens <= UNKNOWN + 1:
            raise ConfigError(f"data.tokens must be a number of words above 2; got {tokens}")
        counts = Counter(word for text in texts for word in words_of(text))
        frequent = [word for word, _ in counts.most_common(tokens - UNKNOWN - 1)]
        ids = {word: place for place, word in enumerate(frequent, UNKNOWN + 1)}
        return Tokenizer(partial(_word_ids, ids))
    if not Path(tokens).is_dir():
        raise ConfigError(
            "data.tokens must be bytes, a number of words, or the folder of a Hugging Face "
            f"tokenizer; got '{tokens}', which is no folder"
        )
    return _hugging_face(tokens)


def words_of(text: str) -> list[str]:
    """The words of a text in small letters."""
    return WORD.findall(text.lower())


def _word_ids(ids: dict[str, int], text: str) -> list[int]:
    return [ids.get(word, UNKNOWN) for word in words_of(text)]


def _hugging_face(folder: str) -> Tokenizer:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ConfigError(
            f"data.tokens={folder} needs transformers; install it with pip install "
            "'pruning-orchestrator[hf]'"
        ) from error
    try:
        known: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        line = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"data.tokens must be the folder of a Hugging Face tokenizer; {folder}: {line}"
        ) from error
    ids = [known.pad_token_id, known.eos_token_id, PAD]
    return Tokenizer(known.encode, next(place for place in ids if place is not None))


def padded(rows: Sequence[Sequence[int]], length: int, pad: int) -> dict[str, Tensor]:
    """`input_ids` (n, length), cut or filled up on the right, and `attention_mask`, 1 where a token
    is.
    """
    ids = torch.full((len(rows), length), pad)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for place, row in enumerate(rows):
        kept = torch.tensor(row[:length], dtype=torch.long)
        ids[place, : len(kept)] = kept
        mask[place, : len(kept)] = 1
    return {"input_ids": ids, "attention_mask": mask}
