"""The samplers that can be measured, by name, and the pairs of sampler and number of steps to measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from partitioner.errors import UsageError

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "dpmpp": ("DPMSolverMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "flow": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow_heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "flow_dpmpp": ("DPMSolverMultistepScheduler", FLOW),
    "flow_unipc": ("UniPCMultistepScheduler", FLOW),
}


@dataclass(frozen=True)
class Case:
    """A sampler, by its name in SCHEDULERS (None: the pipeline's own), and its number of steps."""

    scheduler: str | None
    steps: int


def cases(schedulers: str | None, steps: str) -> list[Case]:
    """Every sampler with every number of steps."""
    names = schedulers.split(",") if schedulers else [None]
    for name in names:
        if name is not None and name not in SCHEDULERS:
            raise UsageError(f"--scheduler {name}: expected some of {', '.join(SCHEDULERS)}")
    counts = steps.split(",")
    if not all(count.isdigit() and int(count) >= 2 for count in counts):
        raise UsageError(f"--steps {steps}: expected numbers of 2 or more, such as 50,25")
    return [Case(name, int(count)) for name in names for count in counts]
