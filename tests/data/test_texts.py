"""Texts as tokens: what is cut, filled up, left out, and refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_modules.data import labelled_texts, running_text
from lightning_modules.data.named import Named
from lightning_modules.data.texts import GIVE_AWAY
from lightning_modules.data.tokens import PAD, UNKNOWN, padded, tokenizer
from lightning_modules.errors import ConfigError, DataError


def test_words_that_name_a_package_are_left_out() -> None:
    text = "np.sum of a torch_tensor, as SciPy and sklearn.base do; a sphere of input"
    assert GIVE_AWAY.sub("", text).split() == [
        ".sum", "of", "a", ",", "as", "and", ".base", "do;", "a", "sphere", "of", "input",
    ]  # fmt: skip


def test_frequent_words_have_numbers_and_all_others_one() -> None:
    encode = tokenizer(4, ["the cat the dog", "The cat"]).encode
    assert encode("The cat, the 2 birds") == [2, 3, 2, UNKNOWN]


def test_bytes_are_tokens_of_any_text() -> None:
    assert tokenizer("bytes", []).encode("aé") == [97, 195, 169]


def test_rows_are_cut_or_filled_up_on_the_right() -> None:
    samples = padded([[5, 6, 7], [8]], 2, PAD)
    assert samples["input_ids"].tolist() == [[5, 6], [8, PAD]]
    assert samples["attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_a_running_text_is_cut_into_blocks_in_its_order(tmp_path: Path) -> None:
    text = "".join(chr(97 + place % 26) for place in range(1001))
    (tmp_path / "mine.txt").write_text(text)
    data = running_text(str(tmp_path / "mine.txt"), length=8)
    data.setup()
    parts = []
    for name in ("train", "val", "test"):
        samples = data.splits[name]
        assert torch.equal(samples["labels"] >= 0, samples["attention_mask"] == 1)
        parts += samples["labels"][samples["labels"] >= 0].tolist()
    assert bytes(parts).decode() == text
    with pytest.raises(AttributeError, match="one class for each sample"):
        _ = data.num_classes


def reviews(folder: Path, count: int = 40) -> str:
    rows = [f'"it is {"good" if i % 2 else "bad"}, {i}",{i % 2}' for i in range(count)]
    path = folder / "mine.csv"
    path.write_text("\n".join(["review,stars", *rows]))
    return str(path)


def test_a_csv_file_with_texts_and_classes(tmp_path: Path) -> None:
    data = labelled_texts(reviews(tmp_path), ("review", "stars"), tokens=10, length=4)
    data.setup()
    assert data.num_classes == 2
    sizes = {name: len(samples["labels"]) for name, samples in data.splits.items()}
    assert sizes == {"train": 24, "val": 6, "test": 10}
    batch = next(iter(data.train_batches(0)))
    assert set(batch) == {"input_ids", "attention_mask", "labels", "index"}


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda folder: labelled_texts("nowhere.csv"), r"or one of docstrings; nowhere.csv is no"),
        (lambda folder: labelled_texts(reviews(folder)), r"got \['text', 'label'\]; it has review"),
        (
            lambda folder: labelled_texts(reviews(folder, 12), ("review", "stars")),
            r"two classes of 10 texts; .* has 0: 6, 1: 6",
        ),
        (lambda folder: running_text("nowhere.txt"), r"or docstrings; nowhere.txt is no file"),
        (
            lambda folder: running_text(reviews(folder)),
            r"at least 10 blocks of 64 tokens; its train data has 7",
        ),
    ],
)
def test_a_source_that_is_no_text_is_refused(tmp_path: Path, made: object, message: str) -> None:
    data = made(tmp_path)  # type: ignore[operator]
    assert isinstance(data, Named)
    with pytest.raises(DataError, match=message):
        data.setup()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [(2, r"above 2; got 2"), ("nowhere", r"bytes, a number of words, or the folder.*'nowhere'")],
)
def test_unknown_tokens_are_refused(tokens: str | int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tokenizer(tokens, [])


def test_a_length_of_one_token_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.length must be at least 2 tokens; got 1"):
        running_text(length=1)
