"""Schedulers of diffusers that forecasts and noise schedules are tested with."""

from __future__ import annotations

from typing import Any

import diffusers

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DETERMINISTIC: dict[str, Any] = {
    "DDIMScheduler": {**BETAS, "clip_sample": False, "set_alpha_to_one": False},
    "PNDMScheduler": {**BETAS, "skip_prk_steps": True},
    "EulerDiscreteScheduler": BETAS,
    "HeunDiscreteScheduler": BETAS,
    "KDPM2DiscreteScheduler": BETAS,
    "DPMSolverMultistepScheduler": BETAS,
    "UniPCMultistepScheduler": BETAS,
    "FlowMatchEulerDiscreteScheduler": {},
    "FlowMatchHeunDiscreteScheduler": {},
}


def scheduler_of(name: str, config: dict[str, Any], steps: int) -> Any:
    """The scheduler of that name and configuration, with the timesteps of so many steps."""
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(steps)
    return scheduler
