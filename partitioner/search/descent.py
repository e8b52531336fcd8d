"""Descent: the borders of a fold are moved, one at a time, as long as that improves it.

The dynamic program over clusters (folds.py) can put borders only between clusters. Here they may stand between any two
runs of the finest level. In each sweep, for k = 1, 2, ..., N-1, the two borders between component k-1 and the inside
that is left for components k and up are tried:

    1  the left border alone, at every place
    2  the right border alone, at every place
    3  both together, up to REACH runs away

Of all these the pair is taken for which the two components on its sides have the least (time above the cap, score, T),
compared in this order. So a fold whose T is within the cap stays within it, and its score never gets worse.
"""

from __future__ import annotations

import numpy as np

from partitioner.search.arrays import Floats, Ints
from partitioner.search.devices import Devices
from partitioner.search.folds import Fold
from partitioner.search.interval_figures import IntervalFigures, fits
from partitioner.search.intervals import Intervals
from partitioner.search.mode import Mode

SWEEPS = 20  # far more than were ever needed; each but the last improves the split
REACH = 12  # how far two borders are moved together
TOLERANCE = 1e-9  # relative; smaller gains are rounding


def improve_borders(
    intervals: Intervals, fold: Fold, devices: Devices, mode: Mode, cap_ms: float, byte_weight: float
) -> Fold:
    """Move the borders of a fold to better places.

    Args:
        intervals: Tables of the Problem that ``fold`` divides.
        fold: Where to begin.
        devices: The devices, one per component.
        mode: How receiving overlaps with computing.
        cap_ms: The T that is to be kept, in ms.
        byte_weight: Staleness that one byte per step is worth.

    Returns:
        A fold that is no worse: its T is no further above the cap and, where it is within it, its score is no higher.
    """
    return _Descent(intervals, fold, devices, mode, cap_ms, byte_weight).run()


class _Descent:
    def __init__(
        self, intervals: Intervals, fold: Fold, devices: Devices, mode: Mode, cap_ms: float, byte_weight: float
    ) -> None:
        self._intervals, self._devices, self._mode = intervals, devices, mode
        self._cap_ms, self._byte_weight = cap_ms, byte_weight
        self._device_of = fold.device_of
        # The innermost component is kept as the run [l, r) of what is inside all the others.
        self._left = [*fold.left[:-1]]
        self._right = [*fold.right[:-1]]

    def run(self) -> Fold:
        for _ in range(SWEEPS):
            moves = [self._move(k) for k in range(1, len(self._left))]
            if not any(moves):
                break
        inner = self._right[-1]
        return Fold((*self._left, inner), (*self._right, inner), self._device_of)

    def _move(self, k: int) -> bool:
        """Give components k-1 and k the best borders between them; whether anything was gained."""
        left, right = self._candidates(k)
        outer, outer_ms = self._figures(k - 1, self._left[k - 1], left, right, self._right[k - 1])
        if k + 1 < len(self._left):
            inner, inner_ms = self._figures(k, left, self._left[k + 1], self._right[k + 1], right)
        else:
            inner, inner_ms = self._figures(k, left, right, right, right)
        slowest = np.maximum(outer_ms, inner_ms)
        excess = np.maximum(slowest - self._cap_ms, 0.0)
        score = outer.score(self._mode, self._byte_weight) + inner.score(self._mode, self._byte_weight)
        best = int(np.lexsort((slowest, score, excess))[0])
        now, then = ((excess[i], score[i], slowest[i]) for i in (0, best))
        if not _better(then, now):
            return False
        self._left[k], self._right[k] = int(left[best]), int(right[best])
        return True

    def _candidates(self, k: int) -> tuple[Ints, Ints]:
        """(left, right) borders to try between components k-1 and k; the present ones come first."""
        left, right = self._left[k], self._right[k]
        outermost = self._left[k - 1], self._right[k - 1]
        innermost = (self._left[k + 1], self._right[k + 1]) if k + 1 < len(self._left) else (right, left)
        whole_left = np.arange(outermost[0], innermost[0] + 1)
        whole_right = np.arange(innermost[1], outermost[1] + 1)
        near_left = whole_left[np.abs(whole_left - left) <= REACH]
        near_right = whole_right[np.abs(whole_right - right) <= REACH]
        pairs = np.concatenate(
            [
                np.array([[left, right]]),
                np.stack([whole_left, np.full(len(whole_left), right)], axis=1),
                np.stack([np.full(len(whole_right), left), whole_right], axis=1),
                np.stack([np.repeat(near_left, len(near_right)), np.tile(near_right, len(near_left))], axis=1),
            ]
        )
        a, b = pairs[:, 0], pairs[:, 1]
        last = k + 1 == len(self._left)
        some_inside = a < b if last else (a < innermost[0]) | (b > innermost[1])
        kept = some_inside & ((a > outermost[0]) | (b < outermost[1]))
        return a[kept], b[kept]

    def _figures(self, k: int, *borders: Ints | int) -> tuple[IntervalFigures, Floats]:
        """Figures and T of component k = [a, b) + [c, d); T is inf where it does not fit its device's memory."""
        a, b, c, d = np.broadcast_arrays(*borders)
        figures = self._intervals.folded(a, b, c, d)
        device = self._device_of[k]
        step = figures.step_ms(self._devices, device, self._mode)
        return figures, np.where(fits(figures, self._devices, device), step, np.inf)


def _better(then: tuple[float, float, float], now: tuple[float, float, float]) -> bool:
    """Whether the figures are less, in order, by more than rounding."""
    for new, old in zip(then, now, strict=True):
        tolerance = TOLERANCE * max(abs(new), abs(old), 1e-300) if np.isfinite(old) else 0.0
        if new < old - tolerance:
            return True
        if new > old + tolerance:
            return False
    return False
