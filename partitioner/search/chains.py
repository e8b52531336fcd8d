"""Exact dynamic program over contiguous splits: component k has the nodes from border p_k up to border p_(k+1).

    node        0   1   2   3   4   5   6   7
    component   0   0   0   1   1   2   2   2          borders p = 0, 3, 5, 8

The nodes are numbered 0..m-1, the borders 0..m. A state says how many devices of each kind are in use (with equal
devices: how many components there are), and the table of a state has for each border p the best split of the nodes
before p over these devices:

    1  least T            table[state][p] = min over q < p of max(table[state - device][q], T of [q, p))
    2  least score, T     table[state][p] = min over q < p of table[state - device][q] + score of [q, p),
       within the cap                       where [q, p) is within the cap

O(states x kinds of devices x m^2).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from partitioner.search.arrays import Floats
from partitioner.search.devices import Devices
from partitioner.search.interval_figures import fits
from partitioner.search.intervals import Intervals
from partitioner.search.mode import Mode


@dataclass(frozen=True, slots=True)
class Chain:
    """Borders 0 = p_0 < ... < p_N = m of a contiguous split, and the device of each component."""

    borders: tuple[int, ...]
    device_of: tuple[int, ...]


State = tuple[int, ...]  # devices in use, by kind
MOST_MOVES = 8000  # states times kinds, such as those of 2 x 60 devices or of 9 that are all different


def device_states(devices: Devices) -> list[State]:
    """The states that are searched, fewest devices first; the first is empty, the last has all.

    All of them, if they are not too many, as with many kinds of devices: then those of one order, the devices' own.

    >>> def of_speeds(*speeds):
    ...     return Devices(("a",) * len(speeds), speeds, *((1.0,) * len(speeds),) * 3)
    >>> len(device_states(of_speeds(1, 2, 3))), len(device_states(of_speeds(*range(1, 13))))
    (8, 13)
    """
    ranges = [range(len(members) + 1) for members in devices.kinds]
    if math.prod(map(len, ranges)) * len(ranges) > MOST_MOVES:
        kind_of = {device: kind for kind, members in enumerate(devices.kinds) for device in members}
        taken = [0] * len(ranges)
        states = [tuple(taken)]
        for device in range(len(devices)):
            taken[kind_of[device]] += 1
            states.append(tuple(taken))
        return states
    return sorted(itertools.product(*ranges), key=lambda state: (sum(state), state))


def without(state: State, kind: int) -> State:
    """The state before a device of that kind was taken; one that there is not, where there was none."""
    return (*state[:kind], state[kind] - 1, *state[kind + 1 :])


class ContiguousSearch:
    """The search for contiguous splits of one Problem over given devices."""

    def __init__(self, intervals: Intervals, devices: Devices, mode: Mode) -> None:
        self._devices = devices
        self._mode = mode
        self._figures = intervals.runs()
        self._size = intervals.size
        filled = np.triu(np.ones((intervals.size + 1, intervals.size + 1), dtype=np.bool_), 1)
        self._step_ms = [
            np.where(filled & fits(self._figures, devices, members[0]),
                     self._figures.step_ms(devices, members[0], mode), np.inf)
            for members in devices.kinds
        ]  # fmt: skip
        self._states = device_states(devices)

    def fastest_ms(self) -> float:
        """The least T of any contiguous split; inf if none fits."""
        return float(self._fill(self._step_ms, np.maximum)[self._states[-1]][self._size])

    def best(self, cap_ms: float, byte_weight: float) -> Chain | None:
        """The split of the least score among those with T <= cap_ms; None if there is none."""
        score = self._figures.score(self._mode, byte_weight)
        tables = [np.where(np.isfinite(table) & (table <= cap_ms), score, np.inf) for table in self._step_ms]
        filled = self._fill(tables, np.add)
        if not np.isfinite(filled[self._states[-1]][self._size]):
            return None
        return self._trace_back(tables, filled)

    def _fill(self, tables: Sequence[Floats], combine: np.ufunc) -> dict[State, Floats]:
        """state -> (m+1,) the least combined figure of a split of the nodes before p over the state's devices."""
        filled: dict[State, Floats] = {}
        for state in self._states:
            best = np.full(self._size + 1, np.inf)
            if sum(state) == 0:
                best[0] = 0.0
            for kind, table in enumerate(tables):
                previous = without(state, kind)
                if previous in filled:
                    best = np.minimum(best, combine(filled[previous][:, None], table).min(axis=0))
            filled[state] = best
        return filled

    def _trace_back(self, tables: Sequence[Floats], filled: dict[State, Floats]) -> Chain:
        state, end = self._states[-1], self._size
        borders, kinds = [end], []
        while sum(state):
            for kind, table in enumerate(tables):
                previous = without(state, kind)
                if previous not in filled:
                    continue
                candidates = filled[previous] + table[:, end]
                start = int(np.argmin(candidates))
                if candidates[start] == filled[state][end]:
                    state, end = previous, start
                    break
            borders.append(end)
            kinds.append(kind)
        return Chain(tuple(reversed(borders)), take_devices(self._devices, list(reversed(kinds))))


def take_devices(devices: Devices, kinds: Sequence[int]) -> tuple[int, ...]:
    """The devices that components of these kinds get: of each kind, the first that is left."""
    left = [list(members) for members in devices.kinds]
    return tuple(left[kind].pop(0) for kind in kinds)
