"""TwoCallForecast: foresees latents of samplers that call the denoiser twice per step."""

from __future__ import annotations

import torch

from runtime.driver.forecast import Forecast, rate_of


class TwoCallForecast(Forecast):
    """The forecast for samplers that call the denoiser twice per step (Heun's method, the midpoint method).

    A step from level s_k to s_{k+2}, with w the second output's share of it (``second_share``; all z at the levels of
    their calls):

        call k   (even, first)    on z_k                               gives output e_k
        call k+1 (odd, second)    on z_k + e_k·(s_{k+1} - s_k)         gives output e_{k+1}
        call k+2 (the next step)  on z_k + ((1-w)·e_k + w·e_{k+1})·(s_{k+2} - s_k)

    The latents lie on no smooth curve, but the outputs do, and each latent shows the output of the call before it:
    z_{k+1} shows e_k, and z_{k+2}, with e_k known, shows e_{k+1}. So the outputs are extrapolated, and later latents
    are computed from them as the sampler will. ``_slope[k]`` holds the output of call k-1.
    """

    checked, needs = 4, 4

    def observe(self, latent: torch.Tensor) -> None:
        """Take the latent of the next call, and the output of the one before, which it shows."""
        super().observe(latent)
        now = self._calls - 1
        if now > 0:
            self._secants.show([self._x[now - 1], self._slope[now]], now - 1)

    def _slope_to(self, call: int) -> torch.Tensor:
        if call % 2:
            return super()._slope_to(call)
        share = self._second_share
        assert share is not None
        whole = (self._z[call] - self._z[call - 2]) / (self._level[call] - self._level[call - 2])
        made: torch.Tensor = (whole - (1 - share) * self._slope[call - 1]) / share
        return made

    def _terms(self, now: int, call: int) -> tuple[torch.Tensor, float]:
        level, share = self._level, self._second_share
        assert share is not None
        output, at = self._slope[now], self._place(now)

        def later(k: int) -> tuple[torch.Tensor, float]:
            """(part without γ, factor of the rate) of the output of call k, observed or extrapolated."""
            return (self._slope[k + 1], 0.0) if k < now else (output, level[k] - at)

        start = now - now % 2  # the first call of the present step
        known, factor = self._z[now], 0.0
        begun = self._z[start], 0.0
        for k in range(now, call):
            fixed, weight = later(k)
            if k % 2 == 0:
                start, begun = k, (known, factor)
            else:
                first, first_weight = later(start)
                fixed = (1 - share) * first + share * fixed
                weight = (1 - share) * first_weight + share * weight
            distance = level[k + 1] - level[start]
            known, factor = begun[0] + fixed * distance, begun[1] + weight * distance
        return known, factor

    def _rate_at(self, now: int) -> torch.Tensor:
        """The change per level, to the first call of a step that came before and was at another level."""
        older = now - 2 if now % 2 == 0 else now - 3
        if older < 0:
            return torch.zeros_like(self._slope[now])
        return rate_of(self._slope[now] - self._slope[older + 1], self._place(now) - self._level[older])

    def _place(self, call: int) -> float:
        """The level of the call that has shown the last output."""
        return self._level[max(call - 1, 0)]
