"""Amplification: how large an error of one output is in the last latent, by the sampler's own weights.

Legend as in runtime.driver.noise_schedule. A sampler that is linear moves by known weights, and outputs answer to
latents: an error δz of a latent is one of J·δz of the slope that its output means. So an error of 1 of the slope of
call k is passed on as

    δu_j = J_j·δz_j  (+ 1 for j = k),      δz_{j+1} = δz_j + w_0·δu_j + w_1·δu_{j-1} + ...

An output alone answers with J = 1/(κ + s), κ = SPREAD. Guidance adds to that, for it multiplies the difference of
outputs that answer unequally: UNEQUAL·g/(κ' + s) at most, where g is nothing to its scale less 1, and κ' the level
below which they answer alike. All g up to the one that is possible are tried, and the worst counts. Flow matching has
other coordinates: there the latent is z·(1 - s), its level is s/(1 - s) in these, and the slope is ε less the clean
latent.

Samplers of one step shrink errors on the way. One that extrapolates outputs makes them larger where J times its moves
is large: then the sequential run itself is near the limit of its stability.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from runtime.driver.noise_schedule import SPREAD, NoiseSchedule

ALIKE, UNEQUAL = 0.15, 1.1  # κ' and what goes with it, measured: docs/results/look-ahead.md
NOISE_ONLY = 1e-3  # the least share of the clean latent that is reckoned with: a flow's first latent has none
ADDED = np.concatenate([np.arange(0.0, 10.0, 0.25), np.arange(10.0, 31.0)])  # g that are tried


class Amplification:
    """Of one trajectory's calls.

    >>> from diffusers import PNDMScheduler
    >>> from runtime.driver.noise_schedule import noise_schedule_of
    >>> scheduler = PNDMScheduler(skip_prk_steps=True)
    >>> scheduler.set_timesteps(20)
    >>> amplification = Amplification(noise_schedule_of(scheduler, 951.0))
    >>> (amplification.at_most(3, np.array([0.0, 6.0])) > 1).tolist()
    [False, True]
    """

    def __init__(self, noise_schedule: NoiseSchedule) -> None:
        level, flow = noise_schedule.level, noise_schedule.flow
        own, added = tuple(_answer(s, flow) for s in level), tuple(_added(s, flow) for s in level)
        self._table = _table(noise_schedule.moves, own, added)

    def at_most(self, call: int | slice, added: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The largest amplification of an error of a call's slope for any g from 0 to ``added``.

        Args:
            call: or several.
            added: by row, (rows).

        Returns:
            (rows); of several calls (calls, rows).
        """
        table: npt.NDArray[np.float64] = self._table[call]
        return table[..., np.minimum(np.searchsorted(ADDED, added), len(ADDED) - 1)]


def _answer(level: float, flow: bool) -> float:
    """du/dz of an output alone."""
    return (1 - SPREAD) / (SPREAD * (1 - level) + level) if flow else 1 / (SPREAD + level)


def _added(level: float, flow: bool) -> float:
    """What guidance adds to du/dz, per g."""
    if not flow:
        return UNEQUAL / (ALIKE + level)
    left = max(1 - level, NOISE_ONLY)
    return UNEQUAL / (left * (ALIKE * left + level))


@lru_cache(maxsize=16)
def _table(
    moves: tuple[tuple[float, ...], ...], own: tuple[float, ...], added: tuple[float, ...]
) -> npt.NDArray[np.float64]:
    """(calls, ADDED): the largest amplification up to each g. own, added: of an output alone, and per g, by call."""
    calls = len(moves)
    latent = np.zeros((calls, len(ADDED)))  # δz, by the call of the error
    slopes: list[npt.NDArray[np.float64]] = []  # δu of the calls so far, likewise
    for call, weights in enumerate(moves):
        slope = (own[call] + added[call] * ADDED) * latent
        slope[call] += 1.0
        slopes.append(slope)
        for back, weight in enumerate(weights[: call + 1]):
            latent = latent + weight * slopes[call - back]
    return np.maximum.accumulate(np.abs(latent), axis=1)
