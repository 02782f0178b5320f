"""Models by name: torchvision's, timm's, and small networks of our own for trying things."""

from lightning_modules.models.actor_critic import ActorCritic
from lightning_modules.models.by_name import timm, torchvision
from lightning_modules.models.detector import Detector
from lightning_modules.models.heads import MLP, MultiHead
from lightning_modules.models.hugging_face import hugging_face
from lightning_modules.models.sequences import RowLSTM, SmallViT
from lightning_modules.models.small import SmallResNet
from lightning_modules.models.speech import SpeechNet
from lightning_modules.models.texts import TextEncoder
from lightning_modules.models.unet import UNet
from lightning_modules.models.vgg import SmallVGG

__all__ = [
    "MLP",
    "ActorCritic",
    "Detector",
    "MultiHead",
    "RowLSTM",
    "SmallResNet",
    "SmallVGG",
    "SmallViT",
    "SpeechNet",
    "TextEncoder",
    "UNet",
    "hugging_face",
    "timm",
    "torchvision",
]
