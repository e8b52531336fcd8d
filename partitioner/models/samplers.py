"""What is known of diffusers' samplers from the names of their classes."""

from __future__ import annotations

_STOCHASTIC = ("Ancestral", "SDE", "DDPM", "LCM", "TCD", "ConsistencyModel", "VQDiffusion")

# Of a sampler that calls the denoiser twice per step: the share of the second call's output in the step.
SECOND_SHARES = {"HeunDiscreteScheduler": 0.5, "FlowMatchHeunDiscreteScheduler": 0.5, "KDPM2DiscreteScheduler": 1.0}


def denoiser_calls(scheduler: str | None, steps: int) -> int:
    """How often a trajectory calls the denoiser; a sampler of two calls per step makes only one in the last step.

    >>> denoiser_calls("DDIMScheduler", 50), denoiser_calls("HeunDiscreteScheduler", 50)
    (50, 99)
    """
    return 2 * steps - 1 if scheduler in SECOND_SHARES else steps


def steps_of(scheduler: str | None, calls: float) -> int:
    """The number of steps, at least 2, whose trajectory comes nearest to that many calls of the denoiser."""
    return max(2, round((calls + 1) / 2 if scheduler in SECOND_SHARES else calls))


def finish_of(scheduler: str | None) -> int:
    """How many of a trajectory's last calls look-ahead runs exactly, because their latents cannot be predicted.

    Of a sampler of two calls per step these are the last two: the first of them is on a latent that one long step to
    the lowest noise level has made, the second on what the first one's output makes of that, and at that noise level
    a small change of the latent changes both outputs much.
    """
    return 2 if scheduler in SECOND_SHARES else 0


def exact_calls(scheduler: str | None, mode: str, warmup: int) -> int:
    """How many calls of a trajectory are run exactly: the warm-up, and in look-ahead the last ones of finish_of."""
    return warmup + (finish_of(scheduler) if mode == "lookahead" else 0)


def adds_noise(scheduler: str) -> bool:
    """Whether a sampler adds fresh noise in every step, so that its later latents cannot be predicted."""
    return any(word in scheduler for word in _STOCHASTIC)
