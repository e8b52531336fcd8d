"""Corrects a denoiser's outputs for the error of the predicted latents that look-ahead ran it on."""

from __future__ import annotations

import torch

from runtime.driver.forecast import Forecast
from runtime.driver.noise_schedule import NoiseSchedule


class Correction:
    """Corrects the outputs of a trajectory in look-ahead, whose latents a forecast predicts.

    Some pipelines turn outputs round before they give them to the scheduler (Lumina's, where 0 is noise). Whether this
    one does is seen at its first move, which is exact: the output says what its slope must be.
    """

    def __init__(self, noise_schedule: NoiseSchedule, forecast: Forecast) -> None:
        self._noise_schedule = noise_schedule
        self._forecast = forecast
        self._first: tuple[torch.Tensor, torch.Tensor] | None = None  # output and latent of call 0
        self._sign = 1.0

    def of(self, output: torch.Tensor, call: int, exact: bool) -> torch.Tensor:
        """The output of a call, in call order, corrected unless the call was exact."""
        if call == 0:
            self._first = output.detach().clone(), self._forecast.latent
        elif call == 1 and self._first is not None:
            self._sign = self._sign_of(*self._first)
            self._first = None
        missed = self._forecast.missed()
        if exact or missed is None:
            return output
        return corrected(output, missed, self._sign * self._noise_schedule.sensitivity[call])

    def _sign_of(self, output: torch.Tensor, latent: torch.Tensor) -> float:
        """-1 where the first move is nearer to what the output, turned round, says of it."""
        slope = self._forecast.slope
        if output.shape != slope.shape:
            return 1.0
        as_it_is, turned = (
            float((self._noise_schedule.slope_of(sign * output.float(), latent.float(), 0) - slope).norm())
            for sign in (1.0, -1.0)
        )
        return -1.0 if turned < as_it_is else 1.0


def corrected(output: torch.Tensor, missed: torch.Tensor, sensitivity: float) -> torch.Tensor:
    """Estimate, to first order, the output for the true latent from the output for the predicted one.

    An output and a latent may differ in the length of one dimension (learned variances behind the output's channels,
    an image behind the latent's): the first entries, which they share, are corrected. If they differ in more, the
    output is returned as it is.

    Args:
        output: what the denoiser made of the predicted latent.
        missed: the true latent minus the predicted one.
        sensitivity: d(output)/d(latent), see runtime.driver.noise_schedule.

    Returns:
        A new tensor of the output's shape and dtype.

    >>> corrected(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.0]), sensitivity=2.0)
    tensor([2., 2.])
    """
    unequal = [d for d in range(output.dim()) if output.dim() == missed.dim() and output.shape[d] != missed.shape[d]]
    if output.dim() != missed.dim() or len(unequal) > 1:
        return output
    made = output.clone()
    part, moved = made, missed
    for d in unequal:
        shared = min(output.shape[d], missed.shape[d])
        part, moved = part.narrow(d, 0, shared), moved.narrow(d, 0, shared)
    part += (sensitivity * moved).to(part.dtype)
    return made
