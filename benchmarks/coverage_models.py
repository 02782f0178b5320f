"""The models of benchmarks/coverage.py: each by a name, with random weights and inputs that it
takes.

A name is one of torchvision's, or begins with the family that builds it: `timm:`, `hf:` (a kind of
Hugging Face's, small), `detection:` (torchvision's backbone and heads), `yolo:` (Ultralytics' own
description of the network).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lightning_modules.pruning.inputs import Inputs

PIXELS = {"swin": 224, "vit": 224, "maxvit": 224, "inception": 128, "deit": 224}
"""Pixels of models, by the beginning of their names, that do not take 64."""
TIMM_PIXELS = {
    "beit": 224,
    "cait": 224,
    "coat": 224,
    "convit": 224,
    "eva02": 224,
    "gcvit": 224,
    "levit": 224,
    "mixer": 224,
    "pit": 224,
    "swinv2": 256,
    "twins": 224,
    "volo": 224,
    "xcit": 224,
}
TIMM = (
    "resnet26d",
    "resnext26ts",
    "seresnet50",
    "resnest14d",
    "res2net50_26w_4s",
    "nf_resnet26",
    "nfnet_l0",
    "resnetv2_50x1_bit",
    "regnetz_b16",
    "dpn48b",
    "dla34",
    "hrnet_w18_small",
    "densenet121",
    "vovnet39a",
    "cspresnet50",
    "darknet53",
    "xception41",
    "inception_v4",
    "mobilenetv1_100",
    "mobilenetv3_small_100",
    "mobilenetv4_conv_small",
    "mnasnet_100",
    "efficientnet_b0",
    "tinynet_a",
    "ghostnet_100",
    "mixnet_s",
    "rexnet_100",
    "fbnetc_100",
    "hardcorenas_a",
    "lcnet_050",
    "convnextv2_atto",
    "convnext_atto",
    "edgenext_xx_small",
    "poolformer_s12",
    "repvgg_a0",
    "mobileone_s0",
    "fastvit_t8",
    "deit_tiny_patch16_224",
    "vit_tiny_patch16_224",
    "mixer_s32_224",
    "xcit_nano_12_p16_224",
    "levit_128s",
    "pvt_v2_b0",
    "coat_lite_tiny",
    "swinv2_cr_tiny_ns_224",
    "eva02_tiny_patch14_224",
)
"""Families of timm, each by a small member."""
HF = {
    "bert": "ids",
    "distilbert": "ids",
    "roberta": "ids",
    "electra": "ids",
    "albert": "ids",
    "deberta-v2": "ids",
    "gpt2": "ids",
    "llama": "ids",
    "qwen2": "ids",
    "mistral": "ids",
    "gpt_neox": "ids",
    "opt": "ids",
    "t5": "encoder",
    "vit": "image",
    "segformer": "image",
    "wav2vec2": "wave",
}
"""Kinds of Hugging Face's networks, and what each takes."""
DETECTION = ("ssdlite320_mobilenet_v3_large", "retinanet_resnet50_fpn", "fcos_resnet50_fpn")
SEGMENTATION = ("lraspp_mobilenet_v3_large", "deeplabv3_resnet50", "fcn_resnet50")
VIDEO = ("r3d_18", "mc3_18", "r2plus1d_18", "s3d", "mvit_v2_s")
YOLO = ("yolov8n", "yolo11n")


def every_name(family: str) -> list[str]:
    """All names of one family."""
    if family == "classification":
        import torchvision.models as tv

        return list(tv.list_models(module=tv))
    prefixed: dict[str, tuple[str, ...]] = {
        "timm": TIMM,
        "hf": tuple(HF),
        "detection": DETECTION,
        "segmentation": SEGMENTATION,
        "video": VIDEO,
        "yolo": YOLO,
        "recurrent": ("gru", "lstm"),
    }
    return [f"{family}:{name}" for name in prefixed[family]]


FAMILIES = (
    "classification",
    "detection",
    "segmentation",
    "video",
    "timm",
    "hf",
    "yolo",
    "recurrent",
)


def built(name: str) -> tuple[nn.Module, Inputs]:
    """The model of this name, in evaluation mode, and a batch of one for it."""
    family, _, bare = name.rpartition(":")
    build: dict[str, Callable[[str], tuple[nn.Module, Inputs]]] = {
        "": _classifier,
        "timm": _timm,
        "hf": _hugging_face,
        "detection": _detector,
        "segmentation": _segmenter,
        "video": _video,
        "yolo": _yolo,
        "recurrent": _recurrent,
    }
    model, inputs = build[family](bare)
    return model.eval(), inputs


def _image(pixels: int) -> Inputs:
    return Inputs((torch.randn(1, 3, pixels, pixels),))


def _classifier(name: str) -> tuple[nn.Module, Inputs]:
    import torchvision.models as tv

    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": False}
    pixels = next((size for key, size in PIXELS.items() if name.startswith(key)), 64)
    return tv.get_model(name, num_classes=10, **options), _image(pixels)


def _timm(name: str) -> tuple[nn.Module, Inputs]:
    import timm

    known = {**PIXELS, **TIMM_PIXELS}
    pixels = next((size for key, size in known.items() if name.startswith(key)), 64)
    return timm.create_model(name, num_classes=10), _image(pixels)


def _segmenter(name: str) -> tuple[nn.Module, Inputs]:
    import torchvision.models as tv

    model = tv.get_model(name, num_classes=5, weights=None, weights_backbone=None)
    return model, _image(64)


def _detector(name: str) -> tuple[nn.Module, Inputs]:
    from lightning_modules.models.one_stage import RawMaps, one_stage

    return RawMaps(one_stage(name, num_classes=5)), _image(128)


def _video(name: str) -> tuple[nn.Module, Inputs]:
    import torchvision.models as tv

    frames, pixels = (16, 224) if name in ("mvit_v2_s", "s3d") else (14, 64)
    return tv.get_model(name, num_classes=10), Inputs((torch.randn(1, 3, frames, pixels, pixels),))


class _Logits(nn.Module):
    """A Hugging Face network whose output is its first tensor."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        return self.network(*args, return_dict=False)[0]  # type: ignore[no-any-return]


def _hugging_face(name: str) -> tuple[nn.Module, Inputs]:
    import transformers

    config = transformers.CONFIG_MAPPING[name]()
    _shrink(config)
    auto = transformers.AutoModel
    if name == "t5":
        return _Logits(transformers.T5EncoderModel(config)), _ids()
    inputs = {"image": _image(64), "wave": Inputs((torch.randn(1, 4000),))}.get(HF[name], _ids())
    return _Logits(auto.from_config(config, attn_implementation="eager")), inputs


def _ids() -> Inputs:
    return Inputs((torch.randint(0, 100, (1, 16)),))


SMALL = {
    "num_hidden_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_layers": 2,
    "vocab_size": 100,
    "use_cache": False,
    "image_size": 64,
}
"""What keeps a network small; widths stay as they are, unless they are those of `NARROW`."""
NARROW = {
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
"""The widths of a network of billions of parameters: memory holds several copies of it."""


def _shrink(config: Any) -> None:
    wide = getattr(config, "hidden_size", 0) > 1024
    chosen = {**SMALL, **NARROW} if wide else SMALL
    for key, value in chosen.items():
        if hasattr(config, key):
            setattr(config, key, value)


def _yolo(name: str) -> tuple[nn.Module, Inputs]:
    tasks = importlib.import_module("ultralytics.nn.tasks")
    return tasks.DetectionModel(f"{name}.yaml", nc=5, verbose=False), _image(64)


def _recurrent(name: str) -> tuple[nn.Module, Inputs]:
    from lightning_modules.models.speech import SpeechNet

    inputs = Inputs((torch.randn(1, 20, 12), torch.tensor([20])))
    return SpeechNet(9, name), inputs
