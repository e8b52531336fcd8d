"""Amplification: how large an error of one output is in the last latent, by the sampler's own weights.

Legend as in runtime.driver.noise_schedule. A sampler that is linear moves by known weights, and outputs answer to
latents: an error δz of a latent is one of ρ·J·δz of the slope that its output means, with J that of the best denoiser
(SPREAD there) and ρ what guidance makes of it. So an error of 1 of the slope of call k is passed on as

    δu_j = ρ·J_j·δz_j  (+ 1 for j = k),      δz_{j+1} = δz_j + w_0·δu_j + w_1·δu_{j-1} + ...

Samplers of one step shrink it on the way. One that extrapolates outputs makes it larger where ρ·J times its moves is
large: then the sequential run itself is near the limit of its stability.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from runtime.driver.noise_schedule import SPREAD, NoiseSchedule

RATIOS = np.concatenate([np.arange(1.0, 10.0, 0.25), np.arange(10.0, 31.0)])  # ρ that are tried


class Amplification:
    """Of one trajectory's calls.

    >>> from diffusers import DDIMScheduler
    >>> from runtime.driver.noise_schedule import noise_schedule_of
    >>> scheduler = DDIMScheduler()
    >>> scheduler.set_timesteps(20)
    >>> amplification = Amplification(noise_schedule_of(scheduler, 950.0))
    >>> bool(amplification.at_most(3, torch.tensor([1.0])) < amplification.at_most(3, torch.tensor([7.0])))
    True
    """

    def __init__(self, noise_schedule: NoiseSchedule) -> None:
        flow = noise_schedule.flow
        stiffness = tuple(
            (1 - SPREAD) / (SPREAD * (1 - s) + s) if flow else 1 / (SPREAD + s) for s in noise_schedule.level
        )
        self._table = torch.from_numpy(_table(noise_schedule.moves, stiffness))
        self._ratios = torch.from_numpy(RATIOS.astype(np.float32))

    def at_most(self, call: int, ratio: torch.Tensor) -> torch.Tensor:
        """The largest amplification of an error of a call's slope for any ρ from 1 to ``ratio``, of that shape."""
        row = self._table[call].to(ratio.device)
        place = torch.bucketize(ratio, self._ratios.to(ratio.device)).clamp_max(len(row) - 1)
        return row[place]


@lru_cache(maxsize=16)
def _table(moves: tuple[tuple[float, ...], ...], stiffness: tuple[float, ...]) -> npt.NDArray[np.float32]:
    """(calls, RATIOS): the largest amplification up to each ratio."""
    calls = len(moves)
    latent = np.zeros((calls, len(RATIOS)))  # δz, by the call of the error
    slopes: list[npt.NDArray[np.float64]] = []  # δu of the calls so far, likewise
    for call, weights in enumerate(moves):
        slope = stiffness[call] * RATIOS * latent
        slope[call] += 1.0
        slopes.append(slope)
        for back, weight in enumerate(weights[: call + 1]):
            latent = latent + weight * slopes[call - back]
    return np.maximum.accumulate(np.abs(latent), axis=1).astype(np.float32)
