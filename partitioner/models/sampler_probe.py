"""probe: finds out what a sampler does, from its scheduler's own step on a trajectory of random tensors.

No denoiser is called and no name is read: a copy of the scheduler is stepped through its timesteps with made-up
outputs, in milliseconds. All that is said of a sampler is computed from how its latents answer.

Legend: p_k is the latent that a pipeline passes to the denoiser at call k, p = a·c + b·ε with c the clean latent and ε
the noise; for most samplers a² + b² = 1, for flow matching a + b = 1. Then z = p/a and the level s = b/a; for flow
matching z = p and s = b. A sampler is *straight* if with outputs that mean one and the same c and ε at every call, each
latent lies on the line of that c and ε. W[k, j] is how much z_k changes with the noise that the output of call j means;
of a straight sampler W[k] sums to s_k - s_0.

Every entry of the probe's latent is a trajectory of its own, for a scheduler treats all entries alike:

    entry 0     c = 1/2, ε = 0      shows a_k
    entry 1     c = 0, ε = 1        shows b_k
    entries 2-3 c = 0, ε = 0        equal unless noise is added, 0 unless something else is
    entry 4     c = 1/10, other ε at every call: what W says of it, if the sampler is linear
    entry 5     c = 1/10, ε = 7/10: what entries 0 and 1 say of it, if the sampler is linear
    entry 6+j   c = 0, ε = 1/1000 at call j only: column j of W
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from partitioner.errors import first_line
from partitioner.graph.torch_private.dispatch import Draws

CLEAN, NUDGE = 0.5, 1e-3
OTHER, MIXED, FIRST = 4, 5, 6  # entries
NEAR = 2e-3  # of the largest value: what the float32 arithmetic of schedulers may add up to
MOST_KEPT = 64

OFF_COURSE = "its steps do not follow a line between the picture and the noise, whatever the outputs mean"
# What an output may mean: ε, a·ε - b·c, c, ε - c, or c - ε.
MEANINGS = ("epsilon", "v_prediction", "sample", "flow", "reversed_flow")


@dataclass(frozen=True)
class Sampler:
    """What a sampler does on its timesteps.

    Attributes:
        calls: how many calls of the denoiser a trajectory has.
        noise: whether it adds noise of its own.
        meaning: one of MEANINGS, what the denoiser's outputs mean; None where no meaning makes the sampler straight.
        clean: a of each call; empty where ``meaning`` is None.
        noisy: b of each call.
        multistep: whether a move combines outputs of earlier steps.
        second_share: None unless a step is two calls, at even and odd calls; then the weight of the second output.
        gain: how much larger than an error in all outputs the error of a move can be; 1 for samplers of one step.
        moves: of every move of z, from a call to the next and from the last one to the end, the weights of the noise
            that outputs mean: that of the call's own output first, then those before it; empty where ``refusal`` says
            that nothing can be predicted.
        refusal: why later latents cannot be predicted, as the end of a sentence; None where they can.
    """

    calls: int
    noise: bool = False
    meaning: str | None = None
    clean: tuple[float, ...] = ()
    noisy: tuple[float, ...] = ()
    multistep: bool = False
    second_share: float | None = None
    gain: float = 1.0
    moves: tuple[tuple[float, ...], ...] = ()
    refusal: str | None = None

    @property
    def flow(self) -> bool:
        """Whether the denoiser's outputs mean a flow, ε - c or c - ε."""
        return self.meaning in ("flow", "reversed_flow")

    @property
    def scale(self) -> tuple[float, ...]:
        """What a latent is divided by to get z, of each call."""
        return (1.0,) * len(self.clean) if self.flow else self.clean

    @property
    def level(self) -> tuple[float, ...]:
        """s of each call."""
        return tuple(b / a for a, b in zip(self.scale, self.noisy, strict=True))


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
    """What decides how a scheduler steps: configuration, attributes, methods, timesteps and noise levels."""
    tensors = [getattr(scheduler, name, None) for name in ("timesteps", "sigmas")]
    values = [tuple(t.detach().flatten().tolist()) if isinstance(t, torch.Tensor) else None for t in tensors]
    config = getattr(scheduler, "config", {})
    held = vars(scheduler) if hasattr(scheduler, "__dict__") else {}
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
    for copied in (copy.deepcopy, _made_anew):
        try:
            with _random_numbers_kept(), _put_back(scheduler), torch.no_grad():
                sampler = _tried(scheduler, copied)
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


def _tried(scheduler: Any, copied: Callable[[Any], Any]) -> Sampler:
    """By the first meaning of its outputs that makes it straight."""
    found = []
    for meaning in _likely_first(scheduler):
        found.append(_Answers(*_answers(_at_start(copied(scheduler)), meaning), meaning).sampler())
        if found[-1].meaning is not None or found[-1].noise:
            return found[-1]
    return found[0]


def _likely_first(scheduler: Any) -> list[str]:
    """The meanings, the one that the configuration names first; it only saves time."""
    named = getattr(getattr(scheduler, "config", None), "prediction_type", None)
    return sorted(MEANINGS, key=lambda meaning: not str(named).startswith(meaning))


@contextmanager
def _random_numbers_kept() -> Iterator[None]:
    """Leave torch's and numpy's global random numbers as they were; torch's only where this thread has drawn some.

    What other threads draw meanwhile, as for the latents of their requests, must not come again.
    """
    import numpy

    states = torch.get_rng_state(), numpy.random.get_state()
    draws = Draws()
    try:
        with draws:
            yield
    finally:
        if draws.drew:
            torch.set_rng_state(states[0])
        numpy.random.set_state(states[1])


@contextmanager
def _put_back(scheduler: Any) -> Iterator[None]:
    """Leave a scheduler as it was: a step that its owner has wrapped steps the scheduler itself, not the copy."""
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
    made = type(scheduler).from_config(scheduler.config)
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


def _answers(scheduler: Any, meaning: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(p, ε, end): what every call passes, the noise that its output means; (calls, entries) each; the last latent."""
    calls = len(scheduler.timesteps)
    clean = torch.zeros(FIRST + calls, dtype=torch.float64)
    noise = torch.zeros(calls, FIRST + calls, dtype=torch.float64)
    clean[0], clean[OTHER], clean[MIXED] = CLEAN, CLEAN / 5, CLEAN / 5
    noise[:, 1], noise[:, MIXED] = 1, 0.7
    noise[:, OTHER] = NUDGE * torch.linspace(0, 12, calls, dtype=torch.float64).cos()
    noise[:, FIRST:] = NUDGE * torch.eye(calls, dtype=torch.float64)
    begun = torch.zeros_like(clean)
    begun[1], begun[MIXED] = 1, 0.7  # every other entry begins without noise
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
    a, b = float(passed[0]) / CLEAN, float(passed[1])
    found = (passed - b * noise) / a
    return found if meaning == "sample" else a * noise - b * found


@dataclass
class _Answers:
    """What a probe's trajectory shows.

    Attributes:
        passed: p of every call, (calls, entries).
        noise: the noise that every output means, (calls, entries).
        end: the last latent, (entries,).
        meaning: of the outputs.
    """

    passed: torch.Tensor
    noise: torch.Tensor
    end: torch.Tensor
    meaning: str

    def sampler(self) -> Sampler:
        """What they say of the sampler, if outputs mean that."""
        calls = len(self.passed)
        if not self.passed.isfinite().all():
            return Sampler(calls, refusal=OFF_COURSE)
        if not torch.equal(self.passed[:, 2], self.passed[:, 3]):
            return Sampler(calls, noise=True, refusal="it adds noise of its own in its steps")
        clean, noisy = self.passed[:, 0] / CLEAN, self.passed[:, 1]
        total = clean + noisy if "flow" in self.meaning else clean**2 + noisy**2
        parts = torch.stack([clean, noisy])
        if not bool(((total - 1).abs() < NEAR).all() & (parts > -NEAR).all()):
            return Sampler(calls, refusal=OFF_COURSE)
        if "flow" not in self.meaning and float(clean.min()) < 1e-5:
            return Sampler(
                calls, refusal="its first latent has no part of the picture, so that no line goes through it"
            )
        made = Sampler(calls, False, self.meaning, tuple(clean.tolist()), _merged(noisy, clean, "flow" in self.meaning))
        if not self._is_linear(made):
            return replace(made, refusal="its latents are not linear in the denoiser's outputs")
        return replace(made, moves=self._moves(made), **self._structure(made))

    def _weights(self, made: Sampler) -> torch.Tensor:
        """W, (calls, calls)."""
        scale = torch.tensor(made.scale, dtype=torch.float64)[:, None]
        return self.passed[:, FIRST:] / scale / NUDGE

    def _moves(self, made: Sampler) -> tuple[tuple[float, ...], ...]:
        scale = 1.0 if made.flow else float(self.end[0]) / CLEAN
        last = self.end[None, FIRST:] / scale / NUDGE
        moves = torch.cat([self._weights(made), last]).diff(dim=0)
        rounding = 1e-5 * float(moves.abs().max())
        found = []
        for call, move in enumerate(moves):
            weights = move[: call + 1].flip(0)
            count = int((weights.abs() > rounding).nonzero().max()) + 1 if bool((weights.abs() > rounding).any()) else 1
            found.append(tuple(weights[:count].tolist()))
        return tuple(found)

    def _is_linear(self, made: Sampler) -> bool:
        outputs = self.noise[:, OTHER] - (CLEAN / 5 if made.flow else 0.0)
        start = self.passed[0, OTHER] / made.scale[0]
        wanted = start + self._weights(made) @ outputs
        found = self.passed[:, OTHER] / torch.tensor(made.scale, dtype=torch.float64)
        least = float(wanted.abs().max()) * NEAR
        mixed = CLEAN / 5 * self.passed[:, 0] / CLEAN + 0.7 * self.passed[:, 1]
        natural = (self.passed[:, MIXED] - mixed).abs().max() <= NEAR
        return bool(((wanted - found).abs() <= least).all() & (self.passed[:, 2].abs() <= least).all() & natural)

    def _structure(self, made: Sampler) -> dict[str, Any]:
        """The fields of Sampler that W tells."""
        weights, level = self._weights(made), torch.tensor(made.level, dtype=torch.float64)
        moves, distance = weights.diff(dim=0), level.diff()
        rounding = 1e-5 * float(weights.abs().max())
        own = torch.eye(len(level), dtype=torch.float64)  # own[j]: all of it from the output of call j

        def same(found: torch.Tensor, wanted: torch.Tensor, distance: torch.Tensor) -> bool:
            return bool(((found - wanted).abs() <= NEAR * distance.abs() + rounding).all())

        first_calls = [same(move, way * own[k], way) for k, (move, way) in enumerate(zip(moves, distance, strict=True))]
        if all(first_calls):
            return {}
        steps, longer = weights[2::2] - weights[:-2:2], level[2::2] - level[:-2:2]
        if len(steps) and all(first_calls[::2]):
            w = round(float(steps[0, 1] / longer[0]), 3)
            shared = [(1 - w) * own[2 * m] + w * own[2 * m + 1] for m in range(len(steps))]
            if all(same(step, way * share, way) for step, way, share in zip(steps, longer, shared, strict=True)):
                return {"second_share": w}
        moved = distance.abs() > rounding
        return {"multistep": True, "gain": float((moves.abs().sum(1)[moved] / distance[moved].abs()).max())}


def _merged(noisy: torch.Tensor, clean: torch.Tensor, flow: bool) -> tuple[float, ...]:
    """b of every call, the same where two calls in a row are at one level up to rounding."""
    values = noisy.tolist()
    scale = [1.0] * len(values) if flow else clean.tolist()
    for k in range(1, len(values)):
        before, now = values[k - 1] / scale[k - 1], values[k] / scale[k]
        if abs(now - before) <= 1e-4 * abs(now):
            values[k] = before * scale[k]
    return tuple(values)
