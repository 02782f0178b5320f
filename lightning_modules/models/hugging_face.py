"""Networks of Hugging Face transformers: by the name of their kind, or from a local folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from lightning_modules.errors import ConfigError
from lightning_modules.recipe import nearest

AUTO_CLASSES = {
    "language_model": "AutoModelForCausalLM",
    "classifier": "AutoModelForSequenceClassification",
}
"""What a network is for, and the class that builds it."""
WEIGHT_FILES = ("*.safetensors", "*.bin")
"""Files of a folder that are weights."""
SPECIAL = ("bos_token_id", "eos_token_id")
"""Tokens of a kind's own vocabulary, which the network itself does not use."""


def hugging_face(
    head: str, name: str | None = None, folder: str | None = None, **config: Any
) -> nn.Module:
    """A network with fresh weights of the kind `name`, such as gpt2, llama, bert or distilbert, or
    the one in `folder`, with its weights where the folder has some. Nothing is downloaded.

    `head` is language_model or classifier. `config` overrides values of the kind's configuration,
    by their own names. There is no cache of keys and values: its tensors would be outputs.
    Errors: ConfigError for a name, a folder or a value that transformers does not take, or without
    transformers.
    """
    try:
        import transformers
        from huggingface_hub.errors import StrictDataclassError
    except ImportError as error:
        raise ConfigError(
            "a Hugging Face model needs transformers; install it with pip install "
            "'pruning-orchestrator[hf]'"
        ) from error
    if head not in AUTO_CLASSES:
        raise ConfigError(f"model.head must be one of {list(AUTO_CLASSES)}; got '{head}'")
    if (name is None) == (folder is None):
        raise ConfigError(
            "a Hugging Face model needs either model.name, as gpt2, or model.folder; got "
            f"name={name} folder={folder}"
        )
    auto = getattr(transformers, AUTO_CLASSES[head])
    try:
        if name is not None:
            return auto.from_config(_fresh_config(transformers, name, config))
        return _from_folder(transformers, auto, Path(str(folder)), config)
    except (StrictDataclassError, ValueError, TypeError, OSError, RuntimeError) as error:
        line = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"transformers cannot build model.name={name} model.folder={folder} with {config}: "
            f"{line}"
        ) from error


def _fresh_config(transformers: Any, name: str, values: dict[str, Any]) -> Any:
    """The configuration of a kind with these values. Errors: ConfigError for unknown ones."""
    known = list(transformers.CONFIG_MAPPING)
    if name not in known:
        raise ConfigError(
            f"model.name must be a kind of network that transformers has, such as gpt2 or llama; "
            f"got '{name}'{nearest(name, known)}"
        )
    _check_values(name, transformers.CONFIG_MAPPING[name](), values)
    none: dict[str, Any] = dict.fromkeys(SPECIAL)
    return transformers.AutoConfig.for_model(name, **{**none, "use_cache": False, **values})


def _from_folder(transformers: Any, auto: Any, folder: Path, values: dict[str, Any]) -> nn.Module:
    """The network of a folder. Errors: ConfigError for a folder without a configuration."""
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"model.folder must hold config.json, as save_pretrained writes it; {folder} has none"
        )
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    _check_values(str(folder), config, values)
    for key, value in {"use_cache": False, **values}.items():
        setattr(config, key, value)
    if not any(list(folder.glob(pattern)) for pattern in WEIGHT_FILES):
        return auto.from_config(config)
    return auto.from_pretrained(folder, config=config, local_files_only=True, dtype="float32")


def _check_values(owner: str, config: Any, values: dict[str, Any]) -> None:
    known = {*config.to_dict(), *config.attribute_map, "num_labels"}
    for key in values:
        if key not in known:
            raise ConfigError(
                f"the configuration of {owner} has no '{key}'{nearest(key, sorted(known))}"
            )
