"""Exact dynamic program over folds: each component has a run of clusters near the input and one near the output.

Clusters are numbered 0..m-1, borders 0..m. Component 0 is the outermost, N-1 the innermost. What components 0..k-1 have
not taken is one run [a, b), the inside; component k takes a run from each of its ends. With N = 3:

    cluster     0   1   2   3   4   5   6   7   8   9
    component   0   0   1   1   2   2   2   1   0   0
                l_0     l_1     l_2         r_2 r_1     r_0      (l_3 = r_3 = r_2: the last one takes all that is left)

    inside before component 0   [0, 10)
                            1   [2, 8)
                            2   [4, 7)

So skip connections from the first layers to the last stay on one component. Either run of a component may be empty:
chains are folds too. The state is (inside, how many devices of each kind are in use); a step takes the component that
leaves the inside [a, b). Components that cannot be part of a split with T <= cap are left out before: those that are
too slow, and those so light that the others would be too slow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from partitioner.search.arrays import Bools, Floats, Ints
from partitioner.search.chains import State, device_states, take_devices, without
from partitioner.search.devices import Devices
from partitioner.search.interval_figures import IntervalFigures, fits
from partitioner.search.intervals import Intervals
from partitioner.search.mode import Mode

ROUNDING = 1e-9
MOST_CANDIDATES = 1_000_000  # about 300 MB and 1 s
MOST_TRIED = 50_000_000  # candidates times states: about 0.5 s a search


class TooManyCandidatesError(Exception):
    """The search would take too much memory."""


@dataclass(frozen=True, slots=True)
class Fold:
    """left: 0 = l_0 <= ... <= l_N; right: m = r_0 >= ... >= r_N = l_N. Component k is [l_k, l_k+1) and [r_k+1, r_k).

    device_of: the device of each component, from the outermost to the innermost.
    """

    left: tuple[int, ...]
    right: tuple[int, ...]
    device_of: tuple[int, ...]


class FoldedSearch:
    """Folds of one Problem over given devices, with T <= cap_ms.

    The components that can be part of one grow in number as m^4 where the cap leaves much room, and each is tried in
    every state: TooManyCandidatesError where there are more than MOST_CANDIDATES, or, unless ``whatever_it_takes``,
    more than MOST_TRIED allows.
    """

    def __init__(
        self, intervals: Intervals, devices: Devices, mode: Mode, cap_ms: float, *, whatever_it_takes: bool = False
    ) -> None:
        self._devices = devices
        self._mode = mode
        self._cap_ms = cap_ms
        self._size = intervals.size
        self._intervals = intervals
        self._states = device_states(devices)
        allowed = MOST_CANDIDATES if whatever_it_takes else MOST_TRIED // len(self._states)
        self._most = min(MOST_CANDIDATES, allowed)
        self._outer = self._shapes(np.zeros(1, dtype=np.int64), np.full(1, self._size, dtype=np.int64))
        inside = np.triu_indices(self._size + 1, 1)
        middle = len(devices) > 2
        self._inner = self._shapes(*(inside if middle else (np.zeros(0, dtype=np.int64),) * 2))
        self._last = self._kept(inside[0], inside[1], inside[1], inside[1])  # all of its inside

    def best(self, cap_ms: float, byte_weight: float) -> Fold | None:
        """The fold of the least score among those with T <= cap_ms (at most the search's own); None without one."""

        def score(shapes: _Shapes, kind: int) -> Floats:
            usable = np.isfinite(shapes.step_ms[kind]) & (shapes.step_ms[kind] <= cap_ms)
            return np.where(usable, shapes.figures.score(self._mode, byte_weight), np.inf)

        return self._search(score, np.add)[1]

    def fastest(self) -> Fold | None:
        """A fold of the least T."""
        return self._search(lambda shapes, kind: shapes.step_ms[kind], np.maximum)[1]

    def _shapes(self, start: Ints, end: Ints) -> _Shapes:
        """All components that take some of the inside [start, end) and leave some, sorted by what they leave."""
        node_ms = np.concatenate([[0.0], np.cumsum(self._intervals.node_ms)])
        low, high = self._load_window()
        runs = end - start
        start, end = np.repeat(start, runs), np.repeat(end, runs)
        a = start + _counting(runs)  # the left run is [start, a), and something is left behind it
        taken = node_ms[a] - node_ms[start]
        # the right run is [b, end): its load lies between low - taken and high - taken
        first = np.maximum(np.searchsorted(node_ms, node_ms[end] - (high - taken)), a + 1)
        final = np.minimum(np.searchsorted(node_ms, node_ms[end] - (low - taken), side="right"), end + 1)
        runs = np.maximum(final - first, 0)
        if int(runs.sum()) > self._most:
            raise TooManyCandidatesError(f"{int(runs.sum())} components may be part of a fold")
        start, a, end = np.repeat(start, runs), np.repeat(a, runs), np.repeat(end, runs)
        b = np.repeat(first, runs) + _counting(runs)
        some = (a > start) | (b < end)
        return self._kept(start[some], a[some], b[some], end[some])

    def _kept(self, start: Ints, a: Ints, b: Ints, end: Ints) -> _Shapes:
        """Those of the components that can be part of a split with T <= cap_ms on some device."""
        figures = self._intervals.folded(start, a, b, end)
        step_ms = [self._step_ms(figures, members[0]) for members in self._devices.kinds]
        usable = np.isfinite(np.minimum.reduce(step_ms))
        order = np.flatnonzero(usable)
        order = order[np.lexsort((b[order], a[order]))]
        return _Shapes(
            start[order], a[order], b[order], end[order], figures.at(order), [table[order] for table in step_ms],
            self._size,
        )  # fmt: skip

    def _step_ms(self, figures: IntervalFigures, device: int) -> Floats:
        speeds = self._devices.speeds
        others = self._cap_ms * (sum(speeds) - speeds[device])
        enough: Bools = figures.load_ms >= (self._intervals.problem.total_ms - others) * (1 - ROUNDING) - ROUNDING
        step = figures.step_ms(self._devices, device, self._mode)
        return np.where(enough & (step <= self._cap_ms) & fits(figures, self._devices, device), step, np.inf)

    def _load_window(self) -> tuple[float, float]:
        """Least and greatest sum of node_ms that a component of some split with T <= cap_ms can have."""
        speeds = self._devices.speeds
        high = self._cap_ms * max(speeds)
        low = self._intervals.problem.total_ms - self._cap_ms * (sum(speeds) - min(speeds)) - self._intervals.shared_ms
        slack = ROUNDING * (1 + self._intervals.problem.total_ms)
        return low - slack, high + slack

    def _search(self, figure: _Figure, combine: np.ufunc) -> tuple[float, Fold | None]:
        kinds = range(len(self._devices.kinds))
        outer, inner, last = ([figure(s, kind) for kind in kinds] for s in (self._outer, self._inner, self._last))
        filled: dict[State, Floats] = {}
        for state in self._states[:-1]:
            best = np.full((self._size + 1, self._size + 1), np.inf)
            if sum(state) == 0:
                best[0, self._size] = 0.0
            shapes, own = (self._outer, outer) if sum(state) == 1 else (self._inner, inner)
            for kind in kinds:
                previous = without(state, kind)
                if previous in filled:
                    shapes.lower(best, combine(filled[previous][shapes.start, shapes.end], own[kind]))
            filled[state] = best
        value, choice = np.inf, (0, 0)
        for kind in kinds:
            previous = without(self._states[-1], kind)
            if previous in filled and len(self._last.start):
                total = combine(filled[previous][self._last.start, self._last.end], last[kind])
                index = int(np.argmin(total))
                if total[index] < value:
                    value, choice = float(total[index]), (kind, index)
        if not np.isfinite(value):
            return value, None
        return value, self._trace_back(filled, choice, outer, inner, combine)

    def _trace_back(
        self,
        filled: dict[State, Floats],
        choice: tuple[int, int],
        outer: list[Floats],
        inner: list[Floats],
        combine: np.ufunc,
    ) -> Fold:
        kind, index = choice
        a, b = int(self._last.start[index]), int(self._last.end[index])
        left, right, kinds = [b, a], [b, b], [kind]
        state = without(self._states[-1], kind)
        while any(state):
            shapes, own = (self._outer, outer) if sum(state) == 1 else (self._inner, inner)
            leaving = shapes.leaving(a, b)
            for kind in range(len(own)):
                previous = without(state, kind)
                if previous not in filled or leaving.start == leaving.stop:
                    continue
                total = combine(filled[previous][shapes.start[leaving], shapes.end[leaving]], own[kind][leaving])
                best = int(np.argmin(total))
                if total[best] == filled[state][a, b]:
                    state = previous
                    a, b = int(shapes.start[leaving][best]), int(shapes.end[leaving][best])
                    break
            left.append(a)
            right.append(b)
            kinds.append(kind)
        return Fold(tuple(reversed(left)), tuple(reversed(right)), take_devices(self._devices, kinds[::-1]))


class _Shapes:
    """Components [start, a) + [b, end) with their figures, sorted by the inside [a, b) that they leave."""

    def __init__(
        self, start: Ints, a: Ints, b: Ints, end: Ints, figures: IntervalFigures, step_ms: list[Floats], size: int
    ) -> None:
        self.start, self.end = start, end
        self.figures = figures
        self.step_ms = step_ms
        self._size = size
        self._inside, self._first = np.unique(a * (size + 1) + b, return_index=True)

    def lower(self, best: Floats, total: Floats) -> None:
        """best[a, b] becomes the least of itself and the totals of the components that leave [a, b)."""
        if len(total):
            a, b = self._inside // (self._size + 1), self._inside % (self._size + 1)
            best[a, b] = np.minimum(best[a, b], np.minimum.reduceat(total, self._first))

    def leaving(self, a: int, b: int) -> slice:
        """The components that leave [a, b)."""
        index = int(np.searchsorted(self._inside, a * (self._size + 1) + b))
        bounds = [*self._first[index : index + 2].tolist(), len(self.start)]
        return slice(bounds[0], bounds[1])


_Figure = Callable[[_Shapes, int], Floats]


def _counting(lengths: Ints) -> Ints:
    """[2, 3] -> [0, 1, 0, 1, 2]."""
    starts = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
