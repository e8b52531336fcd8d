"""probe: finds out what a sampler does, from its scheduler's own step on a trajectory of random tensors.

No denoiser is called and no name is read: a copy of the scheduler is stepped through its timesteps with made-up
outputs, in milliseconds. All that is said of a sampler is computed from how its latents answer
(partitioner.models.sampler_answers, which also says what each entry of the latents is).
"""

from __future__ import annotations

import inspect
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from partitioner.errors import first_line
from partitioner.graph.torch_private.dispatch import Draws
from partitioner.models.sampler import MEANINGS, Sampler
from partitioner.models.sampler_answers import CLEAN, FIRST, MIXED, NEAR, NUDGE, OTHER, SamplerAnswers
from partitioner.models.sampler_copy import copied, own_class

MOST_KEPT = 64
LARGE = 8.0  # times the probe's own latents, whose picture is 1/2: hardly a latent of unit variance is larger than 4
_METHODS = ("step", "scale_model_input", "add_noise", "scale_noise")  # that the owner may replace
_kept: OrderedDict[object, Sampler] = OrderedDict()


def probe(scheduler: Any) -> Sampler:
    """Find out what a scheduler's sampler does; what was found of an equal one before is not looked for again.

    Args:
        scheduler: of diffusers, or with the same methods, after its set_timesteps. It is not changed, and the random
            numbers that its owner will draw stay the same.

    >>> from diffusers import HeunDiscreteScheduler
    >>> scheduler = HeunDiscreteScheduler()
    >>> scheduler.set_timesteps(10)
    >>> found = probe(scheduler)
    >>> found.calls, found.meaning, found.second_share, found.noise
    (19, 'epsilon', 0.5, False)
    """
    key = (type(scheduler), _settings(scheduler))
    if key not in _kept:
        _kept[key] = _found(scheduler)
        if len(_kept) > MOST_KEPT:
            _kept.popitem(last=False)
    return _kept[key]


def _settings(scheduler: Any) -> tuple[object, ...]:
    """What decides how a scheduler steps: configuration, attributes, methods, timesteps and tables of noise levels."""
    config = getattr(scheduler, "config", {})
    held = vars(scheduler) if hasattr(scheduler, "__dict__") else {}
    tables = {name: value for name, value in held.items() if isinstance(value, torch.Tensor) and value.dim() < 2}
    values = [
        (name, table.detach().to("cpu", torch.float64).numpy().tobytes()) for name, table in sorted(tables.items())
    ]
    own = [
        (name, value) for name, value in held.items() if name[0] != "_" and isinstance(value, (bool, int, float, str))
    ]
    steps = [getattr(method, "__func__", method) for method in (getattr(scheduler, name, None) for name in _METHODS)]
    settings = sorted((config if isinstance(config, Mapping) else vars(config)).items(), key=str)
    return (repr(settings), repr(sorted(own)), *steps, *values)


def _found(scheduler: Any) -> Sampler:
    """Of a copy as it is; where that is refused it may be because it was stepped before: then of one made anew."""
    refused: list[Sampler] = []
    failures: list[Exception] = []
    for copy in (copied, _made_anew):
        try:
            with _random_numbers_kept(), _put_back(scheduler), torch.no_grad():
                sampler = _tried(scheduler, copy)
        except Exception as error:  # whatever a class of somebody else's raises when it is stepped without its pipeline
            failures.append(error)
            continue
        if sampler.refusal is None:
            return sampler
        refused.append(sampler)
    if refused:
        return refused[-1]
    why = f"{type(failures[0]).__name__}: {first_line(failures[0])}"
    return Sampler(len(scheduler.timesteps), refusal=f"its step cannot be tried out ({why})")


def _tried(scheduler: Any, copy: Callable[[Any], Any]) -> Sampler:
    """By the first meaning of its outputs that makes it straight."""
    found = []
    for meaning in _likely_first(scheduler):
        answers = _answers(_at_start(copy(scheduler)), meaning)
        found.append(SamplerAnswers(*answers, meaning).sampler())
        if found[-1].refusal is None:
            larger = _answers(_at_start(copy(scheduler)), meaning, LARGE)
            if not all(_near(one / LARGE, other) for one, other in zip(larger, answers, strict=True)):
                found[-1] = replace(found[-1], clips=True)
        if found[-1].meaning is not None or found[-1].noise:
            return found[-1]
    return found[0]


def _near(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool(((one - other).abs() <= NEAR * other.abs().max()).all())


def _likely_first(scheduler: Any) -> list[str]:
    """The meanings, the one that the configuration names first; it only saves time."""
    named = getattr(getattr(scheduler, "config", None), "prediction_type", None)
    return sorted(MEANINGS, key=lambda meaning: not str(named).startswith(meaning))


@contextmanager
def _random_numbers_kept() -> Iterator[None]:
    """Leave all global random numbers as they were; torch's only where this thread has drawn some.

    What other threads draw meanwhile, as for the latents of their requests, must not come again.
    """
    import numpy

    states = torch.get_rng_state(), numpy.random.get_state(), random.getstate()
    draws = Draws()
    try:
        with draws:
            yield
    finally:
        if draws.drew:
            torch.set_rng_state(states[0])
        numpy.random.set_state(states[1])
        random.setstate(states[2])


@contextmanager
def _put_back(scheduler: Any) -> Iterator[None]:
    """Leave a scheduler as it was, which a step that its owner has wrapped may reach through what is shared."""
    held = {name: list(value) if isinstance(value, list) else value for name, value in vars(scheduler).items()}
    try:
        yield
    finally:
        vars(scheduler).clear()
        vars(scheduler).update(held)


def _made_anew(scheduler: Any) -> Any:
    """A scheduler of the same class and configuration with the same timesteps."""
    if any(name in vars(scheduler) for name in _METHODS):
        raise ValueError("its owner has replaced a method of it")
    made = own_class(type(scheduler)).from_config(scheduler.config)
    made.set_timesteps(getattr(scheduler, "num_inference_steps", None) or len(scheduler.timesteps))
    if not torch.equal(made.timesteps.cpu(), scheduler.timesteps.cpu()):
        raise ValueError("its timesteps are not those that its configuration gives")
    return made


def _at_start(scheduler: Any) -> Any:
    """The same scheduler on the CPU, standing at the first of its timesteps."""
    for name, value in vars(scheduler).items():
        if isinstance(value, torch.Tensor):
            setattr(scheduler, name, value.detach().cpu())
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    return scheduler


def _answers(scheduler: Any, meaning: str, times: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(p, ε, end): what every call passes, the noise that its output means; (calls, entries) each; the last latent.

    times: as large are pictures and noise.
    """
    calls = len(scheduler.timesteps)
    clean = torch.zeros(FIRST + calls, dtype=torch.float64)
    noise = torch.zeros(calls, FIRST + calls, dtype=torch.float64)
    clean[0], clean[OTHER], clean[MIXED] = CLEAN, CLEAN / 5, CLEAN / 5
    noise[:, 1], noise[:, MIXED] = 1, 0.7
    noise[:, OTHER] = NUDGE * torch.linspace(0, 12, calls, dtype=torch.float64).cos()
    noise[:, FIRST:] = NUDGE * torch.eye(calls, dtype=torch.float64)
    begun = torch.zeros_like(clean)
    begun[1], begun[MIXED] = 1, 0.7  # every other entry begins without noise
    clean, noise, begun = times * clean, times * noise, times * begun
    latent = _noised(scheduler, clean.view(1, 1, 1, -1), begun.view(1, 1, 1, -1))
    own = {"generator": torch.Generator()} if "generator" in inspect.signature(scheduler.step).parameters else {}
    passed = []
    for call, timestep in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(latent, timestep) if hasattr(scheduler, "scale_model_input") else latent
        passed.append(scaled.flatten().double().clone())
        output = _output(meaning, passed[-1], clean, noise[call])
        latent = scheduler.step(output.view_as(latent), timestep, latent, **own, return_dict=False)[0].double()
    return torch.stack(passed), noise, latent.flatten()


def _noised(scheduler: Any, clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The latent at the first timestep, as the scheduler itself makes it of a clean one and noise."""
    first = scheduler.timesteps[:1]
    if hasattr(scheduler, "add_noise"):
        made = scheduler.add_noise(clean, noise, first)
    elif hasattr(scheduler, "scale_noise"):
        made = scheduler.scale_noise(clean, first, noise)
    elif hasattr(scheduler, "alphas_cumprod"):
        kept = float(scheduler.alphas_cumprod[int(first)])
        made = kept**0.5 * clean + (1 - kept) ** 0.5 * noise
    else:
        made = noise * float(getattr(scheduler, "init_noise_sigma", 1.0))
    result: torch.Tensor = made.double()
    return result


def _output(meaning: str, passed: torch.Tensor, clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The output on ``passed`` of a denoiser that finds that noise in it; of a flow, that clean latent too."""
    if meaning == "epsilon":
        return noise
    if meaning == "flow":
        return noise - clean
    if meaning == "reversed_flow":
        return clean - noise
    a, b = float(passed[0] / clean[0]), float(passed[1] / noise[1])
    found = (passed - b * noise) / a
    return found if meaning == "sample" else a * noise - b * found
