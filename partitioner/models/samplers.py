"""What a sampler of diffusers does, by its class and configuration: it is built, and its step tried out.

A configuration is the text of a scheduler_config.json, as ``config_text`` makes it; "" stands for how Stable Diffusion
configures a class.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from partitioner.errors import UsageError
from partitioner.models.sampler import Sampler

FINISH = 2  # exact last calls of a sampler of two calls per step, see finish_of
MOST_TIMESTEPS = 100_000  # of training, of which schedulers hold tables
USUAL: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "clip_sample": False,
}


def config_text(config: Mapping[str, Any]) -> str:
    """A scheduler's configuration as text, the same for equal ones.

    >>> config_text({"shift": 3.0, "_class_name": "FlowMatchEulerDiscreteScheduler"})
    '{"shift": 3.0}'
    """
    settings = {name: value for name, value in config.items() if not name.startswith("_")}
    return json.dumps(settings, sort_keys=True, default=str)


def settings_text(scheduler: str, config: str) -> str:
    """What a configuration sets that the scheduler class would not do by itself, as text; "" where it is not known.

    So configurations are alike that differ only in settings which the class does not take, or which leave its defaults.

    >>> settings_text("DDIMScheduler", config_text({"beta_end": 0.012, "clip_sample": True, "skip_prk_steps": True}))
    '{"beta_end": 0.012}'
    """
    if not config:
        return ""
    try:
        import diffusers

        taken = inspect.signature(getattr(diffusers, scheduler).__init__).parameters
    except Exception:  # as in sampler_of
        return ""
    settings: dict[str, Any] = json.loads(config)
    return json.dumps(
        {name: value for name, value in settings.items() if name in taken and value != taken[name].default},
        sort_keys=True,
    )


def check_scheduler(scheduler: str) -> None:
    """UsageError where diffusers has no scheduler class of that name.

    >>> check_scheduler("DDIM")
    Traceback (most recent call last):
    partitioner.errors.UsageError: --scheduler 'DDIM' is no scheduler class of diffusers; one is DDIMScheduler
    """
    import diffusers

    if not scheduler.endswith("Scheduler") or not hasattr(diffusers, scheduler):
        raise UsageError(f"--scheduler {scheduler[:80]!r} is no scheduler class of diffusers; one is DDIMScheduler")


@lru_cache(maxsize=1024)
def sampler_of(scheduler: str, steps: int, config: str = "") -> Sampler | None:
    """What the scheduler class of that name does in so many steps.

    None where diffusers has no such class, or it cannot be built without more.

    >>> sampler_of("HeunDiscreteScheduler", 10).calls
    19
    >>> sampler_of("DDIMScheduler", 10, config_text({"prediction_type": "v_prediction"})).meaning
    'v_prediction'
    """
    try:
        import diffusers

        from partitioner.models.sampler_probe import probe

        made_of = getattr(diffusers, scheduler)
        taken = inspect.signature(made_of.__init__).parameters
        settings: dict[str, Any] = json.loads(config) if config else USUAL
        if settings.get("num_train_timesteps", 0) > MOST_TIMESTEPS:
            raise ValueError("a table of so many timesteps is no sampler's")
        made = made_of(**{name: value for name, value in settings.items() if name in taken})
        # pipelines take it from the image's size, between the two
        shift = {"mu": settings.get("max_shift", 1.0)} if settings.get("use_dynamic_shifting") else {}
        made.set_timesteps(steps, **shift)
        return probe(made)
    except Exception:  # whatever classes of several releases raise; ImportError where they need another package
        return sampler_of(scheduler, steps) if config else None


def denoiser_calls(scheduler: str | None, steps: int, config: str = "") -> int:
    """How often a trajectory calls the denoiser; of a sampler that cannot be tried out, once per step.

    >>> denoiser_calls("DDIMScheduler", 50), denoiser_calls("HeunDiscreteScheduler", 50)
    (50, 99)
    """
    sampler = sampler_of(scheduler, steps, config) if scheduler is not None else None
    return steps if sampler is None else sampler.calls


def steps_of(scheduler: str | None, calls: float) -> int:
    """The number of steps, at least 2, whose trajectory comes nearest to that many calls of the denoiser."""
    ten, twenty = denoiser_calls(scheduler, 10), denoiser_calls(scheduler, 20)
    each = (twenty - ten) / 10 or 1.0
    return max(2, round((calls - ten) / each + 10))


def steps_within(scheduler: str | None, steps: int, calls: float, config: str = "") -> int:
    """The most steps, from 2 to so many, whose trajectory calls the denoiser no more often than so many times.

    >>> steps_within("DDIMScheduler", 50, 26.5), steps_within("HeunDiscreteScheduler", 50, 52.5)
    (26, 26)
    """
    count = min(steps, steps_of(scheduler, calls) + 1)
    while count > 2 and denoiser_calls(scheduler, count, config) > calls * (1 + 1e-6):
        count -= 1
    return count


def finish_of(scheduler: str | None, config: str = "") -> int:
    """How many of a trajectory's last calls look-ahead runs exactly, because their latents cannot be predicted.

    Of a sampler of two calls per step these are the last two: the first of them is on a latent that one long step to
    the lowest noise level has made, the second on what the first one's output makes of that, and at that noise level
    a small change of the latent changes both outputs much.
    """
    sampler = sampler_of(scheduler, 10, config) if scheduler is not None else None
    return FINISH if sampler is not None and sampler.second_share is not None else 0


def exact_calls(scheduler: str | None, mode: str, warmup: int, config: str = "") -> float:
    """How many calls of a trajectory are run exactly: the warm-up, and in look-ahead the last ones of finish_of.

    In look-ahead with a sampler that it is refused with all of them, however many there are: math.inf.
    """
    if mode != "lookahead":
        return warmup
    return math.inf if refusal_of(scheduler, config) is not None else warmup + finish_of(scheduler, config)


def refusal_of(scheduler: str | None, config: str = "") -> str | None:
    """Why there is no look-ahead with a sampler under a guard, as the end of a sentence; None where there is.

    >>> refusal_of("EulerAncestralDiscreteScheduler")
    'it adds noise of its own in its steps'
    >>> refusal_of("DDIMScheduler", config_text({"clip_sample": True}))[:28]
    'it clips what is large in th'
    """
    sampler = sampler_of(scheduler, 10, config) if scheduler is not None else None
    return None if sampler is None else sampler.refuses(guarded=True)
