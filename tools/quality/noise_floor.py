"""noise_floors: how far the sequential output in half precision is from the one in float32."""

from __future__ import annotations

import sys

import torch

from partitioner.errors import PartitionerError, first_line
from tools.pictures.similarity import psnr
from tools.quality.measured_pipeline import MeasuredPipeline
from tools.quality.samplers import SamplingCase

DTYPES = {"floor_float16_db": torch.float16, "floor_bfloat16_db": torch.bfloat16}  # by the field of ResultRow


def noise_floors(pipeline: MeasuredPipeline, case: SamplingCase, reference: torch.Tensor) -> dict[str, float | None]:
    """The PSNR in dB of the sequential output in each dtype against float32, the median over the samples.

    An exact run in the dtype is no closer to float32 than this, so a PSNR above it says that the plan changes less than
    the dtype does, and one measured in float16 says nothing of plans when it comes near it.

    Args:
        reference: the sequential output of the first samples in float32, (samples, 3, height, width) in [0, 1].

    Returns:
        By field of ResultRow; None where there are no samples, or where the pipeline does not run in that dtype, which
        is then said on stderr.
    """
    return {field: _floor(pipeline, case, reference, dtype) for field, dtype in DTYPES.items()}


def _floor(pipeline: MeasuredPipeline, case: SamplingCase, reference: torch.Tensor, dtype: torch.dtype) -> float | None:
    if not len(reference):
        return None
    try:
        half = pipeline.in_dtype(dtype)
        half.use(case)
        pixels = half.generate(case.steps, len(reference))
    except (PartitionerError, RuntimeError, TypeError, ValueError) as error:  # as for an operator that CPUs lack
        _say(dtype, first_line(error) or type(error).__name__)
        return None
    if not bool(pixels.isfinite().all()):
        _say(dtype, "its pictures are not finite")
        return None
    return round(float(psnr(pixels, reference).median()), 2)


def _say(dtype: torch.dtype, why: str) -> None:
    print(f"no noise floor of {dtype}: the pipeline does not run in it here: {why}", file=sys.stderr)
