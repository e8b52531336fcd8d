"""partitioner.planning.sampling_setup: what is asked for, and what a model is known for where nothing is."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from partitioner.errors import UsageError
from partitioner.models.find_spec import model_spec
from partitioner.planning.sampling_setup import SamplingSetup


@pytest.mark.parametrize("scale", [-1.0, math.nan, math.inf])
def test_what_is_no_guidance_scale_is_refused(scale: float) -> None:
    with pytest.raises(UsageError, match="expected a number from 0 to 1000"):
        SamplingSetup(guidance_scale=scale)


def test_a_spec_brings_what_is_not_asked_for() -> None:
    spec = model_spec("sd15")
    assert SamplingSetup.of(spec) == SamplingSetup(50, "PNDMScheduler", "batch", "", 7.5, scale_is_default=True)
    asked = SamplingSetup.of(spec, steps=20, scheduler="DDIMScheduler", guidance_scale=5.0)
    assert asked == SamplingSetup(20, "DDIMScheduler", "batch", "", 5.0)
    assert SamplingSetup.of(replace(spec, scheduler_config="x"), scheduler="DDIMScheduler").scheduler_config == ""


def test_a_default_that_leaves_guidance_out_says_nothing_of_plans_for_both_halves() -> None:
    spec = replace(model_spec("sd15"), guidance_scale=1.0)
    assert SamplingSetup.of(spec).scale_in_effect is None
    assert SamplingSetup.of(replace(spec, guidance_style="none")).scale_in_effect == 1.0
