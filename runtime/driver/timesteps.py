"""Timesteps: what a pipeline passes as the timestep of each call of a trajectory, read from its scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

# What pipelines make of the scheduler's timestep t before they pass it on, as (ratio, offset): t, t/1000 (Flux),
# 1 - t/1000 (Lumina, where 0 is noise and 1 the picture)
MADE_OF = ((1.0, 0.0), (1e-3, 0.0), (-1e-3, 1.0))


@dataclass(frozen=True)
class Timesteps:
    """The timesteps of a trajectory's calls, call 0 first.

    Attributes:
        values: as the scheduler has them, on the CPU.
        ratio, offset: the pipeline passes ratio · value + offset.
        first: where in the scheduler's timesteps the trajectory begins.
        rounds_last: whether a pipeline that passes them in half precision has computed them in float32 (AuraFlow), and
            not of a timestep in half precision (Flux); None as long as calls have not shown it.
    """

    values: torch.Tensor
    ratio: float = 1.0
    offset: float = 0.0
    first: int = 0
    rounds_last: bool | None = None
    # the values, each by itself
    _on: dict[torch.device, tuple[torch.Tensor, ...]] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def passed(self) -> list[float]:
        """What the pipeline passes at each call."""
        return [value * self.ratio + self.offset for value in self.values.tolist()]

    @property
    def calls(self) -> int:
        """How many calls the trajectory has."""
        return len(self.passed)

    def expects(self, call: int, timestep: float) -> bool:
        """Whether ``timestep`` is what the pipeline passes at ``call``."""
        return call < self.calls and near(self.passed[call], timestep)

    def timestep(self, call: int, like: torch.Tensor) -> torch.Tensor:
        """The timestep argument of a call, of the shape, dtype and device of ``like``, with the pipeline's own bits."""
        if like.device not in self._on:
            self._on[like.device] = self.values.to(like.device).unbind()
        value = self._made(self._on[like.device][call], like.dtype, rounds_last=bool(self.rounds_last))
        return value if value.shape == like.shape else value.expand(like.shape).contiguous()

    def shown_by(self, call: int, passed: torch.Tensor) -> Timesteps:
        """These with ``rounds_last``, if that can be seen of what the pipeline passes at a call."""
        if self.rounds_last is not None or self.ratio == 1.0 or passed.dtype not in (torch.float16, torch.bfloat16):
            return self
        early, late = (self._made(self.values[call], passed.dtype, rounds_last=last) for last in (False, True))
        if bool(early == late):
            return self
        return replace(self, rounds_last=bool(passed.flatten()[0].cpu() == late))

    def _made(self, value: torch.Tensor, dtype: torch.dtype, *, rounds_last: bool) -> torch.Tensor:
        """What a pipeline makes of the scheduler's value: it divides by 1000."""
        given = value if rounds_last else value.to(dtype)
        return (given if self.ratio == 1.0 else given / (1 / self.ratio) + self.offset).to(dtype)

    def after(self, call: int) -> Timesteps:
        """Those of the calls from ``call`` on."""
        return Timesteps(self.values[call:], self.ratio, self.offset, self.first + call, self.rounds_last)


def timesteps_of(scheduler: Any, timestep: float, every: int = 1) -> Timesteps | None:
    """The timesteps of a trajectory whose first call passes ``timestep``; None where no such one is the scheduler's.

    It may start in the middle, as in image-to-image, at a timestep that is the first of its step: where the scheduler
    stands, if that is near, for half precision may make several one and the same; else at the nearest. If several
    (ratio, offset) fit (the last timestep of flow matching may equal its first one over 1000), the earliest start
    counts of those that are the first of all or fit exactly.

    Args:
        scheduler: after its set_timesteps.
        timestep: what the trajectory's first call passes.
        every: calls per step.
    """
    timesteps = getattr(scheduler, "timesteps", None)
    if not isinstance(timesteps, torch.Tensor) or timesteps.dim() != 1 or len(timesteps) == 0:
        return None
    values = timesteps.detach().cpu()
    found = []
    for number, (ratio, offset) in enumerate(MADE_OF):
        passed = (values.double() * ratio + offset)[::every].tolist()
        places = [i for i, value in enumerate(passed) if near(value, timestep)]
        if places:
            start = _start(passed, places, timestep, _place_of(scheduler, every))
            found.append((start > 0 and not is_exact(passed[start], timestep), every * start, number))
    if not found:
        return None
    _, first, number = min(found)
    return Timesteps(values[first:], *MADE_OF[number], first)


def _start(passed: Sequence[float], places: Sequence[int], timestep: float, own: int | None) -> int:
    """Of several places that a trajectory may start at, the one that it does. own: the scheduler's."""
    if own is not None and own in places:
        return own
    return min(places, key=lambda place: abs(passed[place] - timestep))


def _place_of(scheduler: Any, every: int) -> int | None:
    """The step that a scheduler is about to make, where it knows it."""
    known = (getattr(scheduler, name, None) for name in ("step_index", "begin_index"))
    place = next((place for place in known if isinstance(place, int)), None)
    return None if place is None else place // every


def near(wanted: float, timestep: float) -> bool:
    """Whether a timestep is the wanted one, up to what half precision leaves of it."""
    return abs(timestep - wanted) <= 1e-2 * max(abs(wanted), 1e-3)


def is_exact(wanted: float, timestep: float) -> bool:
    """Whether a timestep is the wanted one, up to what float32 leaves of it."""
    return abs(timestep - wanted) <= 1e-5 * abs(wanted) + 1e-7
