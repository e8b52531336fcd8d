"""What is known of diffusers' samplers by the names of their classes."""

from __future__ import annotations

_STOCHASTIC = ("Ancestral", "SDE", "DDPM", "LCM", "TCD", "ConsistencyModel", "VQDiffusion")

# Of a sampler that calls the denoiser twice per step: the share of the second call's output in the step.
SECOND_SHARES = {"HeunDiscreteScheduler": 0.5, "FlowMatchHeunDiscreteScheduler": 0.5, "KDPM2DiscreteScheduler": 1.0}


def denoiser_calls(scheduler: str | None, steps: int) -> int:
    """How often a trajectory of so many steps calls the denoiser; the last step of two calls is one."""
    return 2 * steps - 1 if scheduler in SECOND_SHARES else steps


def steps_of(scheduler: str | None, calls: float) -> int:
    """The number of steps whose trajectory is nearest to so many calls, at least 2."""
    return max(2, round((calls + 1) / 2 if scheduler in SECOND_SHARES else calls))


def finish_of(scheduler: str | None) -> int:
    """How many of a trajectory's last calls cannot be foreseen, so that look-ahead runs them exactly.

    Of a sampler of two calls the last two: the former is on a latent that one long move to the lowest level has made,
    the latter on what its output makes of that, and at that level both outputs change with the least change of it.
    """
    return 2 if scheduler in SECOND_SHARES else 0


def exact_calls(scheduler: str | None, mode: str, warmup: int) -> int:
    """How many calls of a trajectory are run exactly."""
    return warmup + (finish_of(scheduler) if mode == "lookahead" else 0)


def adds_noise(scheduler: str) -> bool:
    """Whether a sampler adds fresh noise in every step, so that its later latents cannot be foreseen."""
    return any(word in scheduler for word in _STOCHASTIC)
