"""Corrects a denoiser's outputs for the error of the predicted latents that look-ahead ran it on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from runtime.driver.forecast import Forecast
from runtime.driver.noise_schedule import NoiseSchedule
from runtime.driver.secants import Secants, flat


class Correction:
    """Corrects the outputs of a trajectory in look-ahead, whose latents a forecast predicts.

    How outputs answer to latents is learned from the calls (runtime.driver.secants), as far as predictions are in
    doubt: where they are good, the noise schedule's sensitivity is the better guess.

    Some pipelines turn outputs round before they give them to the scheduler (Lumina's, where 0 is noise). Whether this
    one does is seen at its first move, which is exact: the output says what its slope must be.
    """

    def __init__(self, noise_schedule: NoiseSchedule, forecast: Forecast) -> None:
        self._noise_schedule = noise_schedule
        self._forecast = forecast
        self._first: tuple[torch.Tensor, torch.Tensor] | None = None  # output and latent of call 0
        self._secants = Secants(noise_schedule.level, noise_schedule.sensitivity)

    @property
    def sign(self) -> float:
        """-1 where outputs are turned round, once that is known."""
        return self._secants.sign

    def see(self, output: torch.Tensor, call: int) -> None:
        """Take note of a call's output, which with the next latent says what ``sign`` is."""
        if call == 0:
            self._first = output.detach().clone(), self._forecast.latent

    def observe(self) -> None:
        """Take note that the forecast has observed the latent of the next call."""
        if self._first is not None:
            self._secants.sign = self._sign_of(*self._first)
            self._first = None

    def of(self, output: torch.Tensor, call: int, exact: bool) -> torch.Tensor:
        """The output of a call, which has been seen, corrected unless the call was exact."""
        latent = self._forecast.latent
        missed = None if exact else self._forecast.missed
        shared = shared_part(output, latent)
        if shared is None:
            return output
        true = self._shared_of(self._forecast.true, shared)
        if missed is None:
            off, worked_on = torch.zeros_like(true), true
        else:
            off, worked_on = (self._shared_of(each, shared) for each in (missed, self._forecast.worked_on))
        self._secants.show([worked_on, flat(narrow(output, shared)), off, true], call)
        if missed is None:
            return output
        change = self._secants.times(off, call, self._forecast.doubt).view(shared).to(output.dtype)
        if output.shape == shared:
            return output + change
        made = output.clone()
        part = narrow(made, shared)
        part += change
        return made

    def _shared_of(self, values: torch.Tensor, shared: tuple[int, ...]) -> torch.Tensor:
        """Of values of a latent's elements those that it shares with the output; both (rows, 1, elements)."""
        shape = self._forecast.latent.shape
        return values if shape == shared else flat(narrow(values.view(shape), shared))

    def _sign_of(self, output: torch.Tensor, latent: torch.Tensor) -> float:
        """-1 where the first move is nearer to what the output, turned round, says of it."""
        if output.shape != latent.shape:
            return 1.0
        slope = self._forecast.slope.view(latent.shape)
        as_it_is, turned = (
            float((self._noise_schedule.slope_of(sign * output.float(), latent.float(), 0) - slope).norm())
            for sign in (1.0, -1.0)
        )
        return -1.0 if turned < as_it_is else 1.0


def shared_part(output: torch.Tensor, latent: torch.Tensor) -> tuple[int, ...] | None:
    """The shape of what an output and a latent share; None where they differ in more than one length.

    They may differ in the length of one dimension (learned variances behind the output's channels, an image behind the
    latent's): the first entries are those that they share.

    >>> shared_part(torch.zeros(2, 8, 4), torch.zeros(2, 4, 4))
    (2, 4, 4)
    """
    if output.dim() != latent.dim():
        return None
    unequal = [d for d in range(output.dim()) if output.shape[d] != latent.shape[d]]
    return None if len(unequal) > 1 else tuple(map(min, output.shape, latent.shape))


def outputs_of(latents: Sequence[torch.Tensor], outputs: Sequence[Any]) -> list[int | None]:
    """By latent, the place of the output that it is moved by; None where there is none, an output moves one only.

    That is the one of its shape, else the one that it shares a part with (``shared_part``), in their order: a sound's
    tokens may differ from a video's in their number alone.

    >>> outputs_of([torch.zeros(2, 9, 4), torch.zeros(2, 48, 4)], [torch.zeros(2, 48, 4), None, torch.zeros(2, 9, 4)])
    [2, 0]
    """
    places: list[int | None] = [None] * len(latents)
    for fits in (_is_alike, _shares):
        for index, latent in enumerate(latents):
            left = [
                place
                for place, output in enumerate(outputs)
                if isinstance(output, torch.Tensor) and place not in places and fits(output, latent)
            ]
            if places[index] is None and left:
                places[index] = left[0]
    return places


def _is_alike(output: torch.Tensor, latent: torch.Tensor) -> bool:
    return output.shape == latent.shape


def _shares(output: torch.Tensor, latent: torch.Tensor) -> bool:
    return shared_part(output, latent) is not None


def narrow(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The first entries, as a view."""
    return tensor if tensor.shape == shape else tensor[tuple(map(slice, shape))]
