"""Where weights come from: the plans from the dense model to them.

Every link of this lineage has a digest of its weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from lightning_modules.errors import DataError
from lightning_modules.recipe import digest
from orchestrator.redact import redact, redact_tree
from orchestrator.settings import Settings


@dataclass(frozen=True)
class Link:
    """One finished trial: its plan, and what it came to.

    `method` is the key of its method in `Lineage.methods`. `units` are those that the model has;
    rounding, guards and regrowth may make them others than the plan's. `weights` is the sha256 of
    its weights file, `trained_rounds` are the rounds of finetuning in it that are the trial's own.
    """

    trial: int
    method: str
    plan: Mapping[str, Any]
    units: Mapping[str, int]
    trained_rounds: int
    weights: str
    made_with: Mapping[str, Any]


@dataclass(frozen=True)
class Lineage:
    """From the dense model to a finished trial.

    `dense` and `rewound` are digests like a link's `weights`; `recipe` is the part of the settings
    that it needs. `methods` has the settings of every method that a link names, each once.
    """

    dense: str
    rewound: str | None
    recipe: Mapping[str, Any]
    methods: Mapping[str, Any] = field(default_factory=dict)
    links: tuple[Link, ...] = ()

    @property
    def trained_rounds(self) -> int:
        """Rounds of finetuning in the weights at the end, all links together."""
        rounds = [link.trained_rounds for link in self.links]
        return sum(rounds)

    @property
    def trained_steps(self) -> int:
        """Optimizer steps in the weights at the end, all links together.

        A plan may have rounds of its own length.
        """
        usual = self.recipe["phases"]["finetune"]["round_steps"]
        steps = 0
        for link in self.links:
            round_steps = link.plan["timing"].get("round_steps") or usual
            steps += link.trained_rounds * round_steps
        return steps

    def extended(self, link: Link, method: Mapping[str, Any]) -> Lineage:
        """The lineage with one more link, which was pruned by `method`: settings as plain data."""
        methods = {**self.methods, link.method: method}
        return replace(self, methods=methods, links=(*self.links, link))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def method_key(method: Mapping[str, Any]) -> str:
    """The name of a method and a digest of its settings.

    A plan of another study may have another method of that name.
    """
    return f"{method['name']}-{digest(method)[:8]}"


def lineage_in(document: Mapping[str, Any], where: object) -> Lineage:
    """The lineage in a plan's document.

    Errors: DataError for a document without one that can be replayed.
    """
    try:
        plain = document["lineage"]
        links = tuple([Link(**link) for link in plain["links"]])
        return Lineage(**{**plain, "links": links})
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"a plan must carry the chain it came from; {where} does not: {error!r}; an older "
            "version wrote it: run its study again under another study.name"
        ) from error


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model on the CPU, each entry with storage of its own.

    Tied weights are stored twice.
    """
    state = {}
    for name, value in model.state_dict().items():
        state[name] = value.detach().cpu().clone().contiguous()
    return state


def weights_digest(model: nn.Module) -> str:
    """The sha256 of the file that the model's weights make.

    `sha256sum weights.safetensors` gives the same.
    """
    return hashlib.sha256(save(tensors(model))).hexdigest()


def made_with(device: torch.device, memory_format: str) -> dict[str, Any]:
    """What bits depend on beside the recipe.

    Kernels are chosen by version, CPU and memory format, and sums are split by threads.
    """
    return {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "device": device.type,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "memory_format": memory_format,
    }


def recipe_of(settings: Settings) -> dict[str, Any]:
    """What a lineage depends on beside its plans, secrets removed.

    A checkpoint counts by its weights, not its path.
    """
    whole = redact_tree(settings.plain())
    train = dict(whole["phases"]["train"])
    train.pop("checkpoint", None)
    method = settings.method.choices()[0]
    return {
        "model": whole["model"],
        "data": whole["data"],
        "task": whole["task"],
        "seed": whole["seed"],
        "phases": {
            "train": train,
            "finetune": whole["phases"]["finetune"],
            "sparsify": whole["phases"]["sparsify"],
        },
        "method": {
            "attention": method.attention,
            "depth": settings.depth,
            "activation": whole["method"]["activation"],
            **_left_whole(settings),
        },
        **_trainer(settings),
    }


def _trainer(settings: Settings) -> dict[str, Any]:
    """Nothing where Lightning's options are the usual ones: older plans do not name them."""
    return {} if settings.trainer.standard else {"trainer": settings.trainer.options()}


def _left_whole(settings: Settings) -> dict[str, Any]:
    """What the method says of layers that stay whole, where it says anything."""
    method = settings.method
    said: dict[str, Any] = {}
    if method.keep:
        said["keep"] = list(method.keep)
    if method.prune_frozen:
        said["prune_frozen"] = True
    return said


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """A line `path was old, now new` for every leaf in which two trees of plain data differ.

    Secrets are hidden.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        changes = []
        for key in sorted(set(old) | set(new)):
            inner = f"{path}.{key}" if path else str(key)
            changes += differences(old.get(key), new.get(key), inner)
        return changes
    if old == new:
        return []
    return [redact(f"{path} was {old!r}, now {new!r}")]
