"""Settings of a method: what is scored, how, and what happens to what scores low."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lightning_modules.recipe import Recipe
from orchestrator.settings.deleted import INSTEAD
from orchestrator.settings.parts import AnyRecipe, Part, Positive


class ActivationSettings(Part):
    """Activations that are set to zero at run time.

    They are those below a threshold (`threshold`) or outside the largest share (`topk`). `levels`
    is the range of the searched level: a threshold, or the share of activations kept.
    """

    kind: Literal["threshold", "topk"] = "topk"
    levels: tuple[Annotated[float, Field(ge=0.0)], Annotated[float, Field(ge=0.0)]] = (0.3, 0.9)

    @model_validator(mode="after")
    def _ordered(self) -> ActivationSettings:
        low, high = self.levels
        if low > high or (self.kind == "topk" and not 0.0 < low <= high <= 1.0):
            raise ValueError(
                f"levels must be [least, most], within (0, 1] for topk; got {list(self.levels)}"
            )
        return self


class MethodSettings(Part):
    """What is scored, how, and what happens to what scores low.

    With `among`, it is a choice between methods. `granularity` is `unit` (coupled channels,
    neurons, heads: removed), or single weights (set to zero): `weight`, `block` of `shape` rows x
    columns, `pattern` of `shape` N of M. `then` prunes the weights of the units that are left.
    `normalize` compares scores across groups as multiples of their group's mean. `soft` units and
    weights are set to zero but trained on, and may come back until the last pruning step.
    Layers that fit a pattern of `keep` stay whole, and those whose weights are frozen do unless
    `prune_frozen`. `compensate` folds what removed units carried into the layers that consumed
    them. `round_to` keeps widths in multiples; None: as the engine of the latency likes them, see
    `with_rounding`. `depth` adds whole residual blocks; None: where the settings as a whole say so.
    """

    name: str
    criterion: AnyRecipe | None = None
    among: tuple[MethodSettings, ...] = ()
    granularity: Literal["unit", "weight", "block", "pattern"] = "unit"
    shape: tuple[Positive, Positive] | None = None
    rule: Literal["quantile", "mean", "median", "absolute"] = "quantile"
    scope: Literal["local", "global", "isomorphic", "per_mac"] = "local"
    normalize: bool = True
    calibration_batches: Positive = 4
    round_to: Positive | None = None
    attention: Literal["head", "head_dim"] = "head"
    depth: bool | None = None
    soft: bool = False
    compensate: bool = False
    regrowth: AnyRecipe | None = None
    then: MethodSettings | None = None
    keep: tuple[str, ...] = ()
    prune_frozen: bool = False
    activation: ActivationSettings | None = None
    int8: tuple[bool, ...] = (False,)

    @model_validator(mode="after")
    def _fits(self) -> MethodSettings:
        rules = [*self._choosing(), *self._on_weights(), *self._staging()]
        for wrong, message in rules:
            if wrong:
                raise ValueError(f"'{self.name}': {message}")
        return self

    def _choosing(self) -> list[tuple[bool, str]]:
        """What is wrong with a criterion, or with a list of methods among which to choose."""
        among = self.among
        pruned = {(m.granularity, m.shape, m.attention, m.depth, m.then is None) for m in among}
        names = {method.name for method in among}
        choices = [method for method in among if method.among]
        extras = [method for method in among if method.belongs_to_the_choice]
        arguments = {} if self.criterion is None else self.criterion.arguments
        deleted = INSTEAD["method.criterion.combine"]
        return [
            (
                "combine" in arguments,
                f"criterion.combine is not a setting any more: {deleted}",
            ),
            (
                (self.criterion is None) == (not among),
                "a method has a criterion or, to choose, a list `among`",
            ),
            (
                len(pruned) > 1,
                (
                    "methods to choose among prune the same thing: granularity, shape, attention, "
                    "depth, then"
                ),
            ),
            (
                len(names) < len(among),
                "methods to choose among need names of their own",
            ),
            (bool(choices), "a method to choose among is not itself a choice"),
            (
                bool(extras),
                (
                    "`activation`, `int8`, `keep` and `prune_frozen` belong to the method that "
                    "chooses, not to those it chooses among"
                ),
            ),
        ]

    def _on_weights(self) -> list[tuple[bool, str]]:
        """What is wrong with blocks, patterns and single weights."""
        units = self.removes_units
        pattern = self.granularity == "pattern"
        shapeless = self.granularity in ("unit", "weight")
        return [
            (
                shapeless != (self.shape is None),
                "`shape` is for granularity block (rows, columns) and pattern (N, M)",
            ),
            (
                pattern and (self.rule, self.scope) != ("quantile", "local"),
                (
                    "N:M has no threshold, so no rule and no scope: leave them out and take "
                    "space=patterns"
                ),
            ),
            (pattern and self.soft, "N:M is hard; leave `soft` out"),
            (
                pattern and self.shape is not None and self.shape[0] >= self.shape[1],
                f"a pattern keeps N of M with N < M; got {self.shape}",
            ),
            (
                not units and self.rounding > 1,
                "`round_to` rounds units; single weights have no width",
            ),
            (
                not units and bool(self.depth or self.attention != "head"),
                "`depth` and `attention` are for units",
            ),
            (
                not units and self.compensate,
                "`compensate` is for units: their consumers are fitted anew",
            ),
            (
                not units and self.scope == "per_mac",
                "scope `per_mac` is for units; take global for single weights",
            ),
        ]

    def _staging(self) -> list[tuple[bool, str]]:
        """What is wrong with regrowth, a second stage and quantisation."""
        units = self.removes_units
        then = self.then
        regrowth = self.regrowth
        return [
            (
                units and regrowth is not None,
                "`regrowth` moves single weights; for units take `soft`",
            ),
            (
                regrowth is not None and self.granularity != "weight",
                "`regrowth` moves single weights: granularity weight",
            ),
            (
                then is not None and not units,
                "`then` follows the removal of units: granularity unit",
            ),
            (
                then is not None and then.granularity == "unit",
                "`then` prunes single weights: weight, block or pattern",
            ),
            (
                not self.int8 or len(set(self.int8)) < len(self.int8),
                "`int8` lists false, true or both, once each",
            ),
        ]

    @property
    def belongs_to_the_choice(self) -> bool:
        """Whether it says what a method among others cannot say for itself."""
        return self.activation is not None or any(self.int8) or bool(self.keep) or self.prune_frozen

    def choices(self) -> tuple[MethodSettings, ...]:
        """The methods between which a trial may choose; itself, where there is no choice."""
        return self.among or (self,)

    def stages(self) -> tuple[MethodSettings, ...]:
        """The stages of a trial in turn."""
        if self.then is None:
            return (self,)
        return (self, *self.then.stages())

    @property
    def removes_units(self) -> bool:
        """Whether units are removed; else single weights are set to zero."""
        return self.granularity == "unit"

    @property
    def rounding(self) -> int:
        """Widths are multiples of this."""
        return self.round_to or 1

    def with_rounding(self, multiple: int) -> MethodSettings:
        """With widths in these multiples where units are removed and nothing else is said."""
        among = tuple([method.with_rounding(multiple) for method in self.among])
        if self.round_to is not None or not self.removes_units:
            return self.model_copy(update={"among": among})
        return self.model_copy(update={"among": among, "round_to": multiple})

    def scoring(self) -> Recipe:
        """The criterion of a method that is not a choice."""
        assert self.criterion is not None
        return self.criterion

    def plain(self) -> dict[str, Any]:
        """As plain data, recipes included."""
        plain = self.model_dump(mode="json", exclude={"criterion", "among", "regrowth", "then"})
        for name in ("criterion", "regrowth"):
            recipe = getattr(self, name)
            plain[name] = None if recipe is None else recipe.to_json()
        plain["among"] = [method.plain() for method in self.among]
        plain["then"] = None if self.then is None else self.then.plain()
        return plain
