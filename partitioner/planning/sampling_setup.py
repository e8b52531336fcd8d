"""SamplingSetup: what a plan will be run with, as far as it is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from partitioner.limits import MOST_STEPS, check_whole
from partitioner.models.guidance import GuidanceStyle
from partitioner.models.guidance_scale import check_scale, scale_in_effect
from partitioner.models.samplers import refusal_of

if TYPE_CHECKING:
    from partitioner.models.spec import ModelSpec

STEPS = 50  # where nothing else is said


@dataclass(frozen=True)
class SamplingSetup:
    """What a plan will be run with.

    Attributes:
        steps: Of one generation.
        scheduler: A class of diffusers, such as "DDIMScheduler"; None: not known, so that the worst that was measured
            counts.
        guidance_style: How the pipeline does guidance; None: not known.
        scheduler_config: How that class is configured, see ``partitioner.models.samplers``.
        guidance_scale: What the pipeline is called with; None: not known, so that the highest that was measured counts.
        scale_is_default: Whether that is the pipeline's default, which nobody has asked for.

    >>> SamplingSetup(steps=0)
    Traceback (most recent call last):
    partitioner.errors.UsageError: steps is 0; expected a whole number from 1 to 10000
    """

    steps: int = STEPS
    scheduler: str | None = None
    guidance_style: GuidanceStyle | None = None
    scheduler_config: str = ""
    guidance_scale: float | None = None
    scale_is_default: bool = False

    def __post_init__(self) -> None:
        check_whole("steps", self.steps, 1, MOST_STEPS)
        if self.guidance_scale is not None:
            check_scale(self.guidance_scale)

    @classmethod
    def of(
        cls,
        spec: ModelSpec,
        *,
        steps: int | None = None,
        scheduler: str | None = None,
        guidance_scale: float | None = None,
    ) -> SamplingSetup:
        """That of a model's pipeline, by default what is known of it.

        Args:
            spec: Of the model.
            steps: Of one generation; None for the pipeline's default, as for the others.
            scheduler: The class of another sampler, whose configuration is not known then.
            guidance_scale: What the pipeline is called with.

        Raises:
            UsageError: The number of steps or the scale makes no sense.
        """
        scale, style = spec.guidance_scale, spec.guidance_style
        if scale is not None and scale <= 1 and style in ("batch", "two-calls"):
            scale = None  # which computes no second half, and calls are planned that have one
        return cls(
            (spec.steps or STEPS) if steps is None else steps,
            scheduler or spec.scheduler,
            style,
            spec.scheduler_config if scheduler in (None, spec.scheduler) else "",
            scale if guidance_scale is None else guidance_scale,
            scale_is_default=guidance_scale is None and scale is not None,
        )

    @property
    def scale_in_effect(self) -> float | None:
        """The guidance scale that figures are for: 1 where a call computes no second half; None: not known."""
        return scale_in_effect(self.guidance_style, self.guidance_scale)

    @property
    def refusal(self) -> str | None:
        """Why there is no look-ahead with the sampler, as the end of a sentence; None where there is."""
        return refusal_of(self.scheduler, self.scheduler_config)


ANY = SamplingSetup()
