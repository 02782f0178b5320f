"""Type checks for `plan.json`.

Keys that are present have these types; which keys must be present, each reader checks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lightning_modules.errors import DataError
from orchestrator.stored import read_json

Number = Annotated[int, Field(ge=0, le=2**40)]
"""The number of a trial, of rounds, of steps.

A trial's number is a folder's name: nothing else may be one.
"""
Digest = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Timing(_Part):
    steps: Number = 0
    rounds: Number = 0
    start: float = 0.0
    end: float = 0.0
    round_steps: Number | None = None
    accumulate: Annotated[int, Field(ge=1, le=64)] = 1
    distillation: float | None = None
    mixed: Number | None = None


class _Thresholds(_Part):
    levels: dict[str, float] = {}
    rule: str = ""


class _Plan(_Part):
    method: str = ""
    kept: dict[str, Number] = {}
    density: dict[str, Share] = {}
    asked: list[_Thresholds] = []
    timing: _Timing = _Timing()
    activation: float | None = None
    export: str | None = None
    parent: Number | None = None
    seed: Annotated[int, Field(ge=0)] = 0


class _Link(_Part):
    trial: Number = 0
    method: str = ""
    plan: _Plan = _Plan()
    units: dict[str, Number] = {}
    trained_rounds: Number = 0
    weights: Digest = ""
    made_with: dict[str, Any] = {}


class _Lineage(_Part):
    dense: Digest = ""
    rewound: Digest | None = None
    recipe: dict[str, Any] = {}
    methods: dict[str, dict[str, Any]] = {}
    links: list[_Link] = []


class _Activation(_Part):
    kind: Literal["threshold", "topk"]
    level: float
    tensors: list[str]


class _Confirmation(_Part):
    seed: int
    rounds: Number
    lr_factor: float
    weights: Digest
    made_with: dict[str, Any]
    round_steps: Number | None = None
    accumulate: Annotated[int, Field(ge=1, le=64)] = 1


class _Document(_Part):
    trial: Number = 0
    model: dict[str, Any] = {}
    network: str | None = None
    inputs: dict[str, Any] = {}
    ancestors: list[Number] = []
    lineage: _Lineage = _Lineage()
    plan: _Plan = _Plan()
    keep: dict[str, list[list[Number]]] = {}
    density: dict[str, Share] = {}
    shares: dict[str, Share] = {}
    attention: Literal["head", "head_dim"] = "head"
    activation: _Activation | None = None
    dropped: list[str] = []
    exports: dict[str, Digest] = {}
    confirmation: _Confirmation | None = None


def read_document(path: Path, remedy: str) -> dict[str, Any]:
    """The plan's document at `path`.

    Errors: DataError, with the remedy, for what is no JSON within limits, or has another type than
    it should.
    """
    plain = read_json(path, remedy)
    try:
        _Document.model_validate(plain)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{path} must be a plan that this program wrote: {where}: {first['msg']}; {remedy}"
        ) from None
    document: dict[str, Any] = plain
    return document
