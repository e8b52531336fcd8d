"""Position: where a trajectory is among the timesteps that its scheduler has."""

from __future__ import annotations

from typing import Any

from runtime.driver.timesteps import timesteps_of


class Position:
    """The last timestep of a trajectory, and its place in the scheduler's sequence, where it has one.

    Without a sequence, timesteps follow each other if they go on in the direction of the first move, or stay.

    Args:
        timestep: that the trajectory's first call passes.
        scheduler: after its set_timesteps; None where there is none.

    >>> import torch
    >>> from types import SimpleNamespace
    >>> position = Position(600.0, SimpleNamespace(timesteps=torch.tensor([900, 600, 300, 0])))
    >>> position.follows(300.0), position.follows(900.0), position.is_last
    (True, False, False)
    """

    def __init__(self, timestep: float, scheduler: Any) -> None:
        self.last = timestep
        self._sequence = timesteps_of(scheduler, timestep)
        self._index = 0  # in the sequence
        self._asked: tuple[float, int, int | None] | None = None  # a timestep, the index then, and its place
        self._direction = 0.0
        self._pace = 1  # how many places the last move went on

    @property
    def is_known(self) -> bool:
        """Whether the scheduler has such timesteps."""
        return self._sequence is not None

    @property
    def is_last(self) -> bool:
        """Whether the sequence ends here."""
        return self._sequence is not None and self._index == self._sequence.calls - 1

    def follows(self, timestep: float) -> bool:
        """Whether a call with this timestep can come next: later in the sequence, or in the direction so far."""
        if self.is_known:
            return self._next(timestep) is not None
        return (timestep - self.last) * self._direction >= 0.0

    def is_next(self, timestep: float) -> bool:
        """Whether it is the very next of a sequence; without one, whether it is another than the last."""
        return self._next(timestep) == self._index + 1 if self.is_known else timestep != self.last

    def keeps_pace(self, timestep: float) -> bool:
        """Whether it is as far on in a sequence as the last move went; without one, always."""
        return not self.is_known or self._next(timestep) == self._index + self._pace

    def move(self, timestep: float) -> None:
        """Take the next call's timestep, which follows."""
        place = self._next(timestep)
        if place is not None:
            self._index, self._pace = place, place - self._index
        self._direction = self._direction or timestep - self.last
        self.last = timestep

    def _next(self, timestep: float) -> int | None:
        if self._sequence is None:
            return None
        if self._asked is None or self._asked[:2] != (timestep, self._index):
            places = range(self._index + 1, self._sequence.calls)
            place = next((place for place in places if self._sequence.expects(place, timestep)), None)
            self._asked = timestep, self._index, place
        return self._asked[2]
