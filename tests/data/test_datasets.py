"""Data modules: splits apart, batches the same for a seed, errors that help."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_diabetes

from lightning_modules.data import ImageFolder, digits, fashion_mnist, table
from lightning_modules.errors import ConfigError, DataError


def test_splits_are_apart_stratified_and_standardised() -> None:
    data = digits(size=8)
    data.setup()
    sizes = {name: len(x) for name, (x, _) in data.splits.items()}
    assert sizes == {"train": 942, "val": 315, "test": 540}
    flat = torch.cat([x.flatten(1) for x, _ in data.splits.values()])
    assert len(flat.unique(dim=0)) == 1797
    assert all(torch.bincount(y).min() > 0.08 * len(y) for _, y in data.splits.values())
    x = data.splits["train"][0]
    assert abs(float(x.mean())) < 1e-4
    assert float(x.std()) == pytest.approx(1.0, abs=1e-3)


def test_the_split_depends_on_its_own_seed_alone() -> None:
    first, again, other = digits(seed=0), digits(seed=0), digits(seed=1)
    for data in (first, again, other):
        data.setup()
    assert torch.equal(first.splits["val"][0], again.splits["val"][0])
    assert not torch.equal(first.splits["val"][0], other.splits["val"][0])


def test_batches_are_the_same_for_a_seed_and_other_ones_each_time() -> None:
    data = digits(batch_size=64)
    first, second = data.train_batches(7), data.train_batches(7)
    epoch = [batch[2] for batch in first]
    assert all(torch.equal(a, b[2]) for a, b in zip(epoch, second, strict=True))
    assert not torch.equal(epoch[0], next(iter(first))[2])
    assert len(epoch) == len(first) == 14
    assert len(torch.cat(epoch).unique()) == 14 * 64


def test_evaluation_sees_every_sample_once_in_order() -> None:
    data = digits(batch_size=50)
    index = torch.cat([batch[2] for batch in data.val_dataloader()])
    assert torch.equal(index, torch.arange(315))


def test_channels_and_size() -> None:
    assert next(iter(digits(size=32, channels=3).val_dataloader()))[0].shape[1:] == (3, 32, 32)
    assert digits().num_classes == 10


def test_fractions_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.val_fraction must lie between 0 and 1; got 1.5"):
        fashion_mnist(val_fraction=1.5)


def write_idx(path: Path, array: np.ndarray) -> None:
    head = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}i", *array.shape)
    path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


def test_fashion_mnist_reads_idx_files(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for part, count in (("train", 60), ("t10k", 20)):
        write_idx(
            tmp_path / f"{part}-images-idx3-ubyte.gz", generator.integers(0, 256, (count, 28, 28))
        )
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", np.arange(count) % 10)
    data = fashion_mnist(str(tmp_path), size=14, val_fraction=0.2, train_images=50)
    data.setup()
    assert next(iter(data.val_dataloader()))[0].shape[1:] == (1, 14, 14)
    assert {name: len(x) for name, (x, _) in data.splits.items()} == {
        "train": 40,
        "val": 10,
        "test": 20,
    }
    with pytest.raises(DataError, match=r"data.folder must hold train-images-idx3-ubyte.gz"):
        fashion_mnist(str(tmp_path / "nowhere")).setup()


def image_folder(root: Path, classes: tuple[str, ...] = ("cat", "dog"), images: int = 6) -> Path:
    generator = torch.Generator().manual_seed(0)
    for part in ("train", "val"):
        for place, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for i in range(images):
                picture = torch.randint(0, 120, (3, 40, 48), generator=generator) + 100 * place
                Image.fromarray(picture.to(torch.uint8).permute(1, 2, 0).numpy()).save(
                    root / part / name / f"{i}.png"
                )
    return root


def test_image_folders(tmp_path: Path) -> None:
    data = ImageFolder(
        str(image_folder(tmp_path)), size=32, resize=36, batch_size=4, val_fraction=0.34, workers=0
    )
    data.setup()
    assert data.num_classes == 2
    assert next(iter(data.val_dataloader()))[0].shape[1:] == (3, 32, 32)
    assert sum(len(batch[1]) for batch in data.val_dataloader()) == 5
    assert sum(len(batch[1]) for batch in data.test_dataloader()) == 12
    first = next(iter(data.train_batches(3)))
    again = next(iter(data.train_batches(3)))
    assert first[0].shape == (4, 3, 32, 32)
    assert torch.equal(first[1], again[1])
    assert (
        len(first) == 2
    )  # no index: augmented images are not the same twice, outputs are not to be cached
    train = set(data.parts["train"].indices)  # type: ignore[union-attr]
    assert train.isdisjoint(data.parts["val"].indices)  # type: ignore[union-attr]


def test_missing_folders_and_classes_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"data.folder must hold train/<class>/ and val/<class>/; .*nowhere/train is not",
    ):
        ImageFolder(str(tmp_path / "nowhere"))
    image_folder(tmp_path, images=1)
    (tmp_path / "train" / "fox").mkdir()
    with pytest.raises(DataError, match=r"the same classes; only one has \['fox'\]"):
        ImageFolder(str(tmp_path))


@pytest.mark.parametrize(
    ("source", "columns", "classes"), [("breast_cancer", 30, 2), ("wine", 13, 3)]
)
def test_embedded_tables_with_classes(source: str, columns: int, classes: int) -> None:
    data = table(source)
    data.setup()
    inputs, targets = data.splits["train"]
    assert inputs.shape[1] == columns
    assert data.num_classes == classes
    assert targets.dtype == torch.int64
    assert data.target_deviation == 1.0


def test_only_training_rows_standardise_inputs_and_numbers_to_predict() -> None:
    data = table("diabetes", classes=False)
    data.setup()
    for values in data.splits["train"]:
        assert values.mean(0).abs().max() < 1e-5
        assert torch.allclose(values.std(0), torch.ones(values.shape[1:]))
    assert data.splits["val"][1].mean().abs() > 1e-4
    assert not hasattr(data, "num_classes")
    whole = load_diabetes().target
    targets = torch.cat([targets for _, targets in data.splits.values()]).double()
    assert len(targets) == 442
    own_unit = torch.from_numpy(whole).sort().values
    restored = (data.target_deviation * targets).sort().values
    assert torch.allclose(restored - restored[0], own_unit - own_unit[0], atol=1e-3)


def csv_file(folder: Path, header: str, rows: list[str]) -> str:
    path = folder / "mine.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


ROWS = [f"{i},{i % 2}.5,{'yes' if i % 3 else 'no'}" for i in range(40)]


def test_a_csv_file_with_classes_by_name_or_with_a_number(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "age, half ,label", ROWS)
    named = table(path, "label")
    named.setup()
    assert named.num_classes == 2
    assert {name: len(inputs) for name, (inputs, _) in named.splits.items()} == {
        "train": 21,
        "val": 7,
        "test": 12,
    }
    share = sum(float(targets.sum()) for _, targets in named.splits.values()) / 40
    assert share == pytest.approx(26 / 40)
    numbers = csv_file(tmp_path, "age,half", [row.rpartition(",")[0] for row in ROWS])
    predicted = table(numbers, "age", classes=False)
    predicted.setup()
    assert predicted.splits["train"][0].shape == (21, 1)
    assert predicted.target_deviation == pytest.approx(11.7, abs=2.0)


@pytest.mark.parametrize(
    ("header", "rows", "target", "message"),
    [
        ("a,b,c", ROWS, "d", r"data.target must be a column of .*; got 'd'; it has a, b, c"),
        ("a,b,c", ROWS, None, r"data.target must be a column of .*; got 'None'"),
        ("a,b,c", ROWS, "a", r"line 2 has 'yes|no' in column 'c': write numbers for names"),
        ("a,b,c", ["1,,yes"], "c", r"line 2 has '' in column 'b'"),
        ("a,b,c", ["1,nan,yes"], "c", r"must be a finite number; line 2 has 'nan'"),
        ("a,b,c", ["1,2,yes", "1,2"], "c", r"the 3 columns of its header.*; line 3 has 2"),
        ("a,a,c", ROWS, "c", r"must have different names; got a, a, c"),
        ("c", ["yes"], "c", r"columns beside the target"),
        ("a,b,c", ROWS[:12], "c", r"class no of the target has 4; .*data.classes=false"),
        ("a,b,c", [f"{i},1,x" for i in range(30)], "c", r"two classes; every row has x"),
        ("a,b,c", [], "c", r"at least 10 rows; the table has 0"),
    ],
)
def test_a_file_that_is_no_table_is_refused(
    tmp_path: Path, header: str, rows: list[str], target: str | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        table(csv_file(tmp_path, header, rows), target).setup()


def test_a_missing_file_is_refused_with_the_embedded_tables() -> None:
    with pytest.raises(DataError, match=r"or one of breast_cancer, diabetes, wine; nowhere.csv is"):
        table("nowhere.csv", "a").setup()
