"""ResultRow: one measured run, its quality and its speed-up; and the rows of a document grouped by case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ResultRow:
    """How a run was made, and its figures: medians over the samples.

    Attributes:
        branches, components, period, split: of the plan; "one" for the split of a single component.
        predictor: "sequential" for the reference, "fewer_steps" for the baseline, "exact", "lookahead", or the
            predictor of async mode.
        scheduler: class of the sampler; scheduler_config: its settings, see ``partitioner.models.samplers``.
        guidance_scale: in effect, see ``partitioner.models.guidance_scale``; None where it is not known.
        warmup: exact first steps.
        psnr_db, ssim: against the sequential output of the same seeds and all steps.
        agreement: share of pictures in which the classifier recognises what the prompt says.
        frechet: Fréchet distance of the classifier's features from those of drawn pictures.
        frechet_noise: standard deviation of the difference of this distance from the sequential output's.
        lpips: LPIPS distance from the sequential output.
        guard: what look-ahead's guard was asked for, in dB; None where there was none.
        exact_calls: of a generation, the mean; None where no engine ran.
        speedup: over one device, with all exact calls counted.
        speedup_source: "simulated": from the times of a step that the plan predicts.
        floor_float16_db, floor_bfloat16_db: PSNR of the sequential output in that dtype against the one in float32,
            for the case; None where it was not measured.
    """

    devices: int
    branches: int
    components: int
    period: int
    split: str
    predictor: str
    scheduler: str
    steps: int
    warmup: int
    samples: int
    psnr_db: float
    ssim: float
    agreement: float | None
    frechet: float | None
    frechet_noise: float | None
    lpips: float | None
    speedup: float
    speedup_source: str
    guidance_scale: float | None
    scheduler_config: str
    guard: float | None = None
    exact_calls: float | None = None
    floor_float16_db: float | None = None
    floor_bfloat16_db: float | None = None


def by_case(document: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The rows of a document, grouped by sampler and number of steps; the first of a group is the reference."""
    found: list[list[dict[str, Any]]] = []
    for row in document["rows"]:
        if row["predictor"] == "sequential":
            found.append([])
        found[-1].append(row)
    return found
