"""Guard: makes a call of look-ahead exact where the error that it would pass on is too large.

At every call the true latent says by how much its prediction missed. What the components have worked on is off by
that, and so is the output, by J·missed with J as past calls have shown it (``Forecast.answer``; guidance is in it, for
it is read off the latents). The correction takes back a part of it; how large a part is not relied on. Through the
call's move, of length |Δs|, the error of the output gets into the latent; from there to the last one the trajectory
shrinks it, as that of Gaussian clean latents of variance p does:

    harm = |Δs| · √(p / (p + s²)) · rms(J·missed)       s: the level that the move ends at; flow matching likewise

A multistep sampler counts an output again, with the other sign, in later moves: its harm is larger by its gain, which
is how much larger than an error of all outputs the error of a move can be.

The harm of all calls together bounds the error of the last latent. Each call may do its share of the bound; one that
would do more is made exact. Warm-up, guidance that is too strong for so few steps, a callback that changes latents and
prompts that change are all the same to it: the harm tells.

The bound is given as a PSNR in dB that pictures are to have against those of the sequential run. That is a matter of
the decoder and of how much of the harm comes true: MARGIN is such that of the pictures that were measured no more than
1 in 100 fell below (docs/results/look-ahead.md).
"""

from __future__ import annotations

import math

import torch

from runtime.driver.forecast import Forecast
from runtime.driver.noise_schedule import NoiseSchedule
from runtime.errors import InputError

QUALITIES: dict[str, float | None] = {"indistinguishable": 40.0, "good": 26.0, "off": None}  # dB
PRIOR, FLOW_PRIOR = 0.02, 0.005  # p
MARGIN = 6.0  # dB; a picture's PSNR + 20·log10 of the bound is hardly ever below it


class Guard:
    """Makes calls of one trajectory exact.

    Args:
        noise_schedule: of the trajectory's calls.
        quality: PSNR in dB of the pictures against the sequential run's.

    >>> bound_of(46.0)
    0.01
    """

    def __init__(self, noise_schedule: NoiseSchedule, quality: float) -> None:
        self._weights = _weights(noise_schedule)
        self._share = bound_of(quality) / noise_schedule.calls

    def refuses(self, forecast: Forecast, call: int) -> torch.Tensor | None:
        """Whether look-ahead's error at a call is too large in some row, as one value; None if nothing was predicted.

        Args:
            forecast: that has observed the call's latent.
            call: of the trajectory.
        """
        missed = forecast.missed()
        if missed is None:
            return None
        moving = (missed != 0).flatten(1).sum(1).clamp_min(1)  # an image beside the latent, which stays, is not off
        squares = forecast.answer(missed, call).flatten(1).square().sum(1)
        harm = self._weights[call] * (squares / moving).sqrt()
        # not ``harm > share``: what is not finite is refused
        return ~(harm <= self._share).all()


def decibels(quality: float | str) -> float | None:
    """What ``EngineOptions.quality`` asks for as a PSNR in dB; None where it is off.

    Raises:
        InputError: it is neither a number of dB nor one of QUALITIES.

    >>> decibels("indistinguishable")
    40.0
    """
    if isinstance(quality, str):
        if quality in QUALITIES:
            return QUALITIES[quality]
    elif not isinstance(quality, bool) and math.isfinite(quality) and quality > 0:
        return float(quality)
    raise InputError(f"quality is {', '.join(QUALITIES)} or a PSNR in dB above 0; got {quality!r}")


def bound_of(quality: float) -> float:
    """The largest error, as root mean square, that the last latent may have for pictures of such a PSNR in dB."""
    return float(10.0 ** ((MARGIN - quality) / 20.0))


def _weights(noise_schedule: NoiseSchedule) -> list[float]:
    """By call, how much an error of the slope that its output means is worth in the last latent."""
    level, flow = noise_schedule.level, noise_schedule.flow
    prior = FLOW_PRIOR if flow else PRIOR
    ends = [*level[1:], 0.0]
    lengths = [abs(end - begin) for begin, end in zip(level, ends, strict=True)]
    for call, weights in enumerate(noise_schedule.moves):
        lengths[call] = abs(sum(weights))
    gain = noise_schedule.gain
    return [gain * length * _kept(end, prior, flow) for length, end in zip(lengths, ends, strict=True)]


def _kept(level: float, prior: float, flow: bool) -> float:
    """The share of an error of z at a level that is left at level 0."""
    clean = 1.0 - level if flow else 1.0
    return min(1.0, math.sqrt(prior / (clean**2 * prior + level**2)))
