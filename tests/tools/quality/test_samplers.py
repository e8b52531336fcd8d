"""Cases: samplers and numbers of steps as the command line writes them."""

from __future__ import annotations

import pytest

from partitioner.errors import UsageError
from tools.quality.samplers import SamplingCase, cases


def test_cases_are_every_sampler_with_every_number_of_steps() -> None:
    assert cases(None, "50") == [SamplingCase(None, 50)]
    assert cases("ddim,unipc", "25,50") == [SamplingCase(s, n) for s in ("ddim", "unipc") for n in (25, 50)]
    for schedulers, steps in (("ddpm", "50"), ("ddim", "1"), ("ddim", "many")):
        with pytest.raises(UsageError):
            cases(schedulers, steps)
