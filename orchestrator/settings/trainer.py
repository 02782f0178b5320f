"""The options of Lightning's Trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict

from orchestrator.settings.parts import Part, Positive

if TYPE_CHECKING:
    from lightning_modules.phases.trainer_options import TrainerOptions


class TrainerSettings(Part):
    """Options of Lightning's Trainer; those without a field here go to it as they are."""

    model_config = ConfigDict(extra="allow")

    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accumulate_grad_batches: Positive = 1

    def options(self) -> dict[str, Any]:
        """By their names in Lightning."""
        return self.model_dump()

    def for_training(self) -> TrainerOptions:
        """The options as the phases of training take them."""
        # imported here, since Lightning takes seconds to import
        from lightning_modules.phases.trainer_options import TrainerOptions

        return TrainerOptions(self.options())

    @property
    def standard(self) -> bool:
        """Whether all options are as they are by default."""
        return self.options() == TrainerSettings().options()
