"""Data modules: each a LightningDataModule with the loaders of contract.py."""

from lightning_modules.data.arrays import digits, fashion_mnist
from lightning_modules.data.canvases import canvases
from lightning_modules.data.contract import Data
from lightning_modules.data.episodes import Episodes
from lightning_modules.data.folder import ImageFolder
from lightning_modules.data.in_memory import Batches, InMemory
from lightning_modules.data.named import Named, NamedBatches
from lightning_modules.data.series import series
from lightning_modules.data.tables import table
from lightning_modules.data.texts import labelled_texts, running_text

__all__ = [
    "Batches",
    "Data",
    "Episodes",
    "ImageFolder",
    "InMemory",
    "Named",
    "NamedBatches",
    "canvases",
    "digits",
    "fashion_mnist",
    "labelled_texts",
    "running_text",
    "series",
    "table",
]
