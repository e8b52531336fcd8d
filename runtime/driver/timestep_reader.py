"""TimestepReader: the timestep of a call as a number, without waiting for the GPU that it is on."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from runtime.driver.readback import Readback, is_late
from runtime.driver.timesteps import MADE_OF, near


class TimestepReader:
    """Reads timesteps as numbers.

    A pipeline passes elements of its scheduler's ``timesteps``, mostly as views of them: their place there says which.
    Where it computes something of them the scheduler's ``step_index`` says which, after the first of its calls; what
    was really passed is then compared at the next call. Everything else is read, and waited for.

    Attributes:
        was_wrong: whether a number that was given out was another than the timestep; ``step_index`` then counts no
            more. Whoever has seen that sets it back.
    """

    def __init__(self) -> None:
        self.was_wrong = False
        self._known: tuple[weakref.ref[torch.Tensor], int, list[float]] | None = None  # of a scheduler's timesteps
        self._made_of: tuple[float, float] | None = None  # (ratio, offset), of the known ones
        self._given: tuple[float, Readback] | None = None  # that is to be compared
        self._counts_steps = True

    def number(self, timestep: torch.Tensor | float, scheduler: Any) -> float:
        """The timestep of a call.

        Args:
            timestep: as it was passed: a number, or a tensor whose largest number counts: parts of a sample that are
                given, such as the first frame of a video, have less noise than what is made, or none.
            scheduler: of the caller; None where there is none.
        """
        self._compare()
        if not isinstance(timestep, torch.Tensor):
            return float(timestep)
        timesteps = getattr(scheduler, "timesteps", None)
        if not isinstance(timesteps, torch.Tensor) or timesteps.dim() != 1 or len(timesteps) == 0:
            return timestep_number(timestep)
        numbers = self._numbers_of(timesteps)
        place = _place_in(timesteps, timestep)
        if place is not None:
            return numbers[place]
        step = getattr(scheduler, "step_index", None)
        known = self._counts_steps and self._made_of is not None and is_late(timestep)
        if known and isinstance(step, int) and 0 <= step < len(numbers):
            assert self._made_of is not None
            ratio, offset = self._made_of
            number = numbers[step] * ratio + offset
            self._given = number, Readback(timestep.max().reshape(1))
            return number
        number = timestep_number(timestep)
        self._made_of = next((made for n in numbers for made in MADE_OF if near(n * made[0] + made[1], number)), None)
        return number

    def _compare(self) -> None:
        if self._given is not None:
            number, passed = self._given
            self._given = None
            if not near(float(passed.values()[0]), number):
                self.was_wrong, self._counts_steps = True, False

    def _numbers_of(self, timesteps: torch.Tensor) -> list[float]:
        """A scheduler's timesteps as numbers, which are read once: they are another tensor in every trajectory."""
        version = 0 if timesteps.is_inference() else timesteps._version
        if self._known is None or self._known[0]() is not timesteps or self._known[1] != version:
            self._known = weakref.ref(timesteps), version, timesteps.detach().to("cpu", torch.float64).tolist()
            self._made_of = None
        return self._known[2]


def _place_in(timesteps: torch.Tensor, timestep: torch.Tensor) -> int | None:
    """The place in ``timesteps`` that a tensor is a view of, be it expanded; None where it is none of that kind."""
    one = all(size == 1 or stride == 0 for size, stride in zip(timestep.shape, timestep.stride(), strict=True))
    same = timestep.dtype == timesteps.dtype and timestep.device == timesteps.device and timestep.numel() > 0
    if not one or not same or timestep.untyped_storage().data_ptr() != timesteps.untyped_storage().data_ptr():
        return None
    place, rest = divmod(int(timestep.storage_offset() - timesteps.storage_offset()), max(timesteps.stride(0), 1))
    return place if rest == 0 and 0 <= place < len(timesteps) else None


def timestep_number(timestep: torch.Tensor) -> float:
    """The number of a timestep; waits for it.

    >>> timestep_number(torch.tensor([[0.0, 0.0], [700.0, 700.0]]))
    700.0
    """
    return float(timestep.max())
