"""What a sampler of diffusers does, by the name of its class: the class is built, and its step tried out."""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from partitioner.models.sampler_probe import Sampler

FINISH = 2  # exact last calls of a sampler of two calls per step, see finish_of
USUAL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "skip_prk_steps": True}


@lru_cache(maxsize=1024)
def sampler_of(scheduler: str, steps: int) -> Sampler | None:
    """What the scheduler class of that name does in so many steps, configured as Stable Diffusion configures it.

    None where diffusers has no such class, or it cannot be built without more.

    >>> sampler_of("HeunDiscreteScheduler", 10).calls
    19
    """
    try:
        import diffusers

        from partitioner.models.sampler_probe import probe

        made_of = getattr(diffusers, scheduler)
        taken = inspect.signature(made_of.__init__).parameters
        made = made_of(**{name: value for name, value in USUAL.items() if name in taken})
        made.set_timesteps(steps)
        return probe(made)
    except Exception:  # whatever classes of several releases raise; ImportError where they need another package
        return None


def denoiser_calls(scheduler: str | None, steps: int) -> int:
    """How often a trajectory calls the denoiser; of a sampler that cannot be tried out, once per step.

    >>> denoiser_calls("DDIMScheduler", 50), denoiser_calls("HeunDiscreteScheduler", 50)
    (50, 99)
    """
    sampler = sampler_of(scheduler, steps) if scheduler is not None else None
    return steps if sampler is None else sampler.calls


def steps_of(scheduler: str | None, calls: float) -> int:
    """The number of steps, at least 2, whose trajectory comes nearest to that many calls of the denoiser."""
    ten, twenty = denoiser_calls(scheduler, 10), denoiser_calls(scheduler, 20)
    each = (twenty - ten) / 10 or 1.0
    return max(2, round((calls - ten) / each + 10))


def finish_of(scheduler: str | None) -> int:
    """How many of a trajectory's last calls look-ahead runs exactly, because their latents cannot be predicted.

    Of a sampler of two calls per step these are the last two: the first of them is on a latent that one long step to
    the lowest noise level has made, the second on what the first one's output makes of that, and at that noise level
    a small change of the latent changes both outputs much.
    """
    sampler = sampler_of(scheduler, 10) if scheduler is not None else None
    return FINISH if sampler is not None and sampler.second_share is not None else 0


def exact_calls(scheduler: str | None, mode: str, warmup: int) -> int:
    """How many calls of a trajectory are run exactly: the warm-up, and in look-ahead the last ones of finish_of."""
    return warmup + (finish_of(scheduler) if mode == "lookahead" else 0)


def refusal_of(scheduler: str | None) -> str | None:
    """Why a sampler's later latents cannot be predicted, as the end of a sentence; None where they can.

    >>> refusal_of("EulerAncestralDiscreteScheduler")
    'it adds noise of its own in its steps'
    """
    sampler = sampler_of(scheduler, 10) if scheduler is not None else None
    return None if sampler is None else sampler.refusal
