"""The samplers that can be measured, by name, and SamplingCase: one sampler with one number of steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from partitioner.errors import UsageError
from partitioner.models.sampler_probe import probe

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
# name on the command line -> (class of diffusers, arguments); those named flow... are for denoisers that predict a flow
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "dpmpp": ("DPMSolverMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "dpmpp_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "lms": ("LMSDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
    "flow": ("FlowMatchEulerDiscreteScheduler", {"shift": 1.0}),
    "flow_shift3": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow_dynamic": ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
    "flow_heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "flow_dpmpp": ("DPMSolverMultistepScheduler", FLOW),
    "flow_unipc": ("UniPCMultistepScheduler", FLOW),
}


@dataclass(frozen=True)
class SamplingCase:
    """A sampler and its number of steps.

    Attributes:
        scheduler: a name in SCHEDULERS; None for the pipeline's own scheduler.
        steps: denoising steps of one generation.
    """

    scheduler: str | None
    steps: int


def cases(schedulers: str | None, steps: str) -> list[SamplingCase]:
    """Every sampler with every number of steps.

    Args:
        schedulers: names of SCHEDULERS, with commas between; None for the pipeline's own scheduler.
        steps: numbers of steps, with commas between.

    Raises:
        UsageError: a sampler that is not known, or a number of steps below 2.

    >>> cases("ddim", "25,50")
    [SamplingCase(scheduler='ddim', steps=25), SamplingCase(scheduler='ddim', steps=50)]
    """
    names = schedulers.split(",") if schedulers else [None]
    for name in names:
        if name is not None and name not in SCHEDULERS:
            raise UsageError(f"--scheduler {name}: expected some of {', '.join(SCHEDULERS)}")
    counts = steps.split(",")
    if not all(count.isdigit() and int(count) >= 2 for count in counts):
        raise UsageError(f"--steps {steps}: expected numbers of 2 or more, such as 50,25")
    return [SamplingCase(name, int(count)) for name in names for count in counts]


def predicts_flow(scheduler: Any) -> bool:
    """Whether a scheduler of diffusers is for denoisers that predict a flow."""
    made = type(scheduler).from_config(scheduler.config, use_dynamic_shifting=False)  # which wants to know the size
    made.set_timesteps(10)
    return probe(made).flow
