"""What is said of a sampler; the rest is run by tests/tools/quality/test_schedulers.py."""

from __future__ import annotations

from partitioner.models.sampler_probe import probe
from tests.support.schedulers import BETAS, scheduler_of
from tools.quality.scheduler_runs import saying


def test_what_the_probe_says_is_put_in_words() -> None:
    said = {
        "DDIMScheduler": "one call per step",
        "HeunDiscreteScheduler": "two calls per step, the second's share is 0.5",
        "DPMSolverMultistepScheduler": "multistep, errors grow up to 2.",
        "LCMScheduler": "it adds noise of its own in its steps",
    }
    for name, words in said.items():
        assert saying(probe(scheduler_of(name, BETAS, 10))).startswith(words)
