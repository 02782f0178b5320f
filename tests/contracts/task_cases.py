"""The project's own tasks, and one as its user would write it: what a batch, an output and a metric
are differs in each.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningDataModule, LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from lightning_modules.tasks.contract import to_device

SAMPLES, BATCH = {"train": 160, "val": 64, "test": 64}, 32


class Loader:
    """Batches with a length; a plain list would mean several loaders to Lightning."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class MadeData(LightningDataModule):
    """Batches of whatever `samples` makes for (part, index); nothing beyond what the phases ask
    for.
    """

    def samples(self, index: Tensor, generator: torch.Generator) -> Any:
        raise NotImplementedError  # each case has its own

    def _batches(self, part: str) -> list[Any]:
        offset = {"train": 0, "val": 1, "test": 2}[part]
        return [
            self.samples(index, torch.Generator().manual_seed(1000 * offset + int(index[0])))
            for index in torch.arange(SAMPLES[part]).split(BATCH)
        ]

    def train_batches(self, seed: int) -> Loader:
        batches = self._batches("train")
        order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed))
        return Loader([batches[place] for place in order])

    def ordered_batches(self) -> Loader:
        return Loader(self._batches("train"))

    def val_dataloader(self) -> Loader:
        return Loader(self._batches("val"))

    def test_dataloader(self) -> Loader:
        return Loader(self._batches("test"))


class TokenData(MadeData):
    """Sentences of twelve tokens, padded: a dict of token ids, attention mask and labels."""

    def samples(self, index: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        tokens = torch.randint(2, 30, (len(index), 12), generator=generator)
        lengths = torch.randint(4, 13, (len(index),), generator=generator)
        mask = torch.arange(12)[None] < lengths[:, None]
        tokens = torch.where(mask, tokens, 0)
        return {"ids": tokens, "mask": mask, "labels": ((tokens > 20).sum(1) * 3 > lengths).long()}


class TokenNet(nn.Module):
    """An encoder of integer tokens; the mask is a keyword."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.head = nn.Linear(width, 2)

    def forward(self, ids: Tensor, *, attention_mask: Tensor) -> Tensor:
        x = self.embedding(ids)
        x = x + self.down(F.gelu(self.up(x)))
        weights = attention_mask.unsqueeze(-1).to(x.dtype)
        return self.head((x * weights).sum(1) / weights.sum(1))


class TokenTask(LightningModule):
    """Cross-entropy; accuracy between 0 and 1; batches are dicts."""

    directions: ClassVar[dict[str, str]] = {"accuracy": "maximize", "loss": "minimize"}
    scale: ClassVar[dict[str, float]] = {"accuracy": 1.0}

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.accuracy, self.mean_loss = (
            model,
            MulticlassAccuracy(2, average="micro"),
            MeanMetric(),
        )

    def _logits(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(batch["ids"], attention_mask=batch["mask"])

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(self._logits(batch), batch["labels"])}

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        logits = self._logits(batch)
        self.accuracy.update(logits, batch["labels"])
        self.mean_loss.update(F.cross_entropy(logits, batch["labels"]))
        self.log("accuracy", self.accuracy, on_epoch=True)
        self.log("loss", self.mean_loss, on_epoch=True)


@functools.cache
def speech_folder() -> str:
    """Three speakers of four features each, in files of the .ts format; gone with the process."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    generator = torch.Generator().manual_seed(0)
    for part, count in (("TRAIN", 96), ("TEST", 48)):
        lines = ["@problemName Made", "@data"]
        for place in range(count):
            speaker, steps = place % 3, 5 + place % 8
            tone = torch.sin((1 + speaker) * torch.arange(steps) / 2.0)
            values = tone + 0.3 * torch.randn(4, steps, generator=generator)
            columns = [",".join(f"{value:.4f}" for value in row) for row in values.tolist()]
            lines.append(":".join([*columns, f"speaker {speaker}"]))
        Path(folder, f"Made_{part}.ts").write_text("\n".join(lines))
    return folder


@functools.cache
def text_file() -> str:
    """240 texts of four classes, each with words of its own; gone with the process."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    generator = torch.Generator().manual_seed(0)
    lines = ["text,label"]
    for place in range(240):
        kind = place % 4
        drawn = torch.randint(12, (10,), generator=generator).tolist()
        words = [f"word{8 * kind + number}" for number in drawn]
        lines.append(f"{' '.join(words)},kind {kind}")
    path = Path(folder, "texts.csv")
    path.write_text("\n".join(lines))
    return str(path)


HERE = "tests.contracts.task_cases"
SMALLER = {
    "classification": ["model.width=8"],
    "tabular": ["model.width=24"],
    "regression": ["model.width=24"],
    "multitask": ["model.width=8"],
    "segmentation": ["model.width=4", "model.depth=2", "data.size=16", "data.images=96"],
    "detection": ["model.width=4", "data.size=32", "data.images=96"],
    "text": ["model.width=16", "model.layers=1", "data.length=16", "data.batch_size=128"],
    "control": [
        "model.width=16",
        "data.environments=8",
        "data.steps=64",
        "data.updates=4",
        "data.episodes=8",
    ],
    "speech_gru": ["model.width=8", "model.features=4", "model.num_classes=3", "data.name=Made"],
    "language_model": [
        "model.n_embd=16",
        "model.n_head=2",
        "model.n_layer=1",
        "model.n_positions=16",
        "data.characters=20000",
        "data.length=16",
    ],
}
"""What makes an experiment one of seconds."""
OURS = tuple(SMALLER)
"""The project's own tasks; each but the first has an experiment of its name."""
CASES = (*OURS[1:], "tokens")
NAMES = (*OURS, "tokens")


def overrides(name: str) -> list[str]:
    """What a command line says to prune this case."""
    if name == "classification":
        return SMALLER[name]
    if name == "speech_gru":
        return [f"+experiment={name}", *SMALLER[name], f"data.folder={speech_folder()}"]
    if name in SMALLER:
        return [f"+experiment={name}", *SMALLER[name]]
    targets = {"model": "TokenNet", "data": "TokenData", "task": "TokenTask"}
    words = [f"{group}={{_target_:{HERE}.{target}}}" for group, target in targets.items()]
    return [*words, "objectives.quality=accuracy"]


def parts_of(name: str) -> tuple[nn.Module, Any, LightningModule]:
    """(network, data, task around it) of a case."""
    if name == "tokens":
        network: nn.Module = TokenNet()
        return network, TokenData(), TokenTask(network)
    if name == "control":
        return _control()
    if name in ("language_model", "speech_gru", "text"):
        return _sequences(name)
    from lightning_modules import data, models, tasks

    if name == "classification":
        network = models.SmallResNet(10, width=8)
        return network, data.digits(), tasks.Classification(network, 10)
    if name == "multitask":
        network = models.MultiHead({"digit": 10, "parity": 2}, width=8)
        return network, data.digits(), tasks.DigitAndParity(network)
    if name == "tabular":
        network = models.MLP(30, 2, width=24)
        return network, data.table("breast_cancer"), tasks.Tabular(network, 2)
    if name == "segmentation":
        network = models.UNet(11, width=4, depth=2)
        masks = data.canvases(size=16, images=96)
        return network, masks, tasks.Segmentation(network, 11, "both")
    if name == "detection":
        network = models.Detector(11, width=4)
        return network, data.canvases(True, size=32, images=96), tasks.Detection(network, 11)
    network = models.MLP(10, 1, width=24)
    numbers = data.table("diabetes", classes=False)
    return network, numbers, tasks.Regression(network, numbers)


def _sequences(name: str) -> tuple[nn.Module, Any, LightningModule]:
    from lightning_modules import data, models, tasks

    if name == "language_model":
        sizes = {"n_embd": 16, "n_head": 2, "n_layer": 1, "n_positions": 16, "vocab_size": 256}
        dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        decoder = models.hugging_face("language_model", "gpt2", **sizes, **dropouts)
        running = data.running_text(characters=20000, length=16)
        return decoder, running, tasks.LanguageModeling(decoder)
    if name == "speech_gru":
        network: nn.Module = models.SpeechNet(3, "gru", features=4, width=8)
        speech = data.series("Made", speech_folder())
        return network, speech, tasks.SequenceClassification(network, 3)
    network = models.TextEncoder(4, width=16, layers=1, dropout=0.0)
    texts = data.labelled_texts(text_file())
    return network, texts, tasks.SequenceClassification(network, 4)


def _control() -> tuple[nn.Module, Any, LightningModule]:
    from lightning_modules import data, models, tasks

    network = models.ActorCritic(4, 2, width=16)
    played = data.Episodes(environments=8, steps=64, updates=4, episodes=8)
    played.setup()
    return network, played, tasks.Control(network, played)


def batches(task: LightningModule, data: Any) -> Iterator[Any]:
    """The validation batches as Lightning hands them to the task's steps."""
    for batch in data.val_dataloader():
        yield to_device(task, batch, torch.device("cpu"))
