"""OutputForecast: foresees latents as the sampler will make them, of outputs that are foreseen.

Legend as in runtime.driver.forecast: u_k is the slope that the output of call k means, with guidance in it. A sampler
that is linear moves by known weights (``NoiseSchedule.moves``), so that latents show the outputs, and outputs give
latents:

    z_{k+1} = z_k + w_0·u_k + w_1·u_{k-1} + ...

What is extrapolated linearly in the level is u - J·x, where J is the derivative of the output by the latent as past
calls have shown it (runtime.driver.secants). With J·x of the newest latent added it is the output. That matters where a
sampler takes steps as long as the output lets it (high guidance, few steps): an output then answers to what the latent
has just done, and a line through past outputs, a call late, would swing around the trajectory and away from it.
"""

from __future__ import annotations

import torch

from runtime.driver.damping import damping_of, told_by
from runtime.driver.forecast import Forecast
from runtime.driver.noise_schedule import NoiseSchedule
from runtime.driver.two_call_forecast import TwoCallForecast


def forecast_of(noise_schedule: NoiseSchedule, reach: int) -> Forecast:
    """The forecast for the sampler that has this noise schedule. reach: how many calls ahead it must predict."""
    kind = OutputForecast if noise_schedule.second_share is None else TwoCallForecast
    return kind(noise_schedule, reach)


class OutputForecast(Forecast):
    """Predicts later latents from foreseen outputs; for all samplers but those of two calls per step.

    The change of u - J·x is multiplied by γ, as in Forecast: one per row, that which would have told the last
    ``checked`` outputs best. Where predictions are good, J is what rounding and the trajectory's bend look like, and
    the plain extrapolation of the moves does better: the two are weighted by ``doubt``. So a straight trajectory is
    foreseen exactly.
    """

    def __init__(self, noise_schedule: NoiseSchedule, reach: int) -> None:
        """Start without latents; as Forecast."""
        super().__init__(noise_schedule, reach)
        self._moves = noise_schedule.moves
        self._longest = 1.0 if noise_schedule.multistep else float("inf")
        self._shown: dict[int, torch.Tensor] = {}  # u by call
        self._bend: tuple[torch.Tensor, torch.Tensor] | None = None  # the last changes of u, and of J·x over its unit
        self._moved: torch.Tensor | None = None  # from the last latent but one to the last
        self._gamma: torch.Tensor
        self._trial: tuple[torch.Tensor, torch.Tensor] | None = None  # of the output of the newest latent
        self._trials: list[torch.Tensor] = []  # what the last ones have told of γ
        self._kept = max(self._kept, max(map(len, self._moves), default=1) + 1)

    def observe(self, latent: torch.Tensor) -> None:
        """Take the latent of the next call, and the output of the one before, which it shows."""
        super().observe(latent)
        now = self._calls - 1
        if now == 0:
            return
        self._shown[now - 1] = shown = self._shown_by(now)
        self._shown.pop(now - 1 - self._kept, None)
        if self._trial is not None:
            fixed, change = self._trial
            self._trials = [*self._trials[1 - self.checked :], told_by(shown - fixed, change)]
        self._gamma = damping_of(self._trials, shown)
        before, self._moved = self._moved, self._x_moved(now - 1)
        if before is not None:
            change = shown - self._shown[now - 2]
            self._secants.show_change(torch.cat([before, change], 1), now - 1)
            self._bend = change, self._secants.per_unit(before)
        self._trial = self._output(now, self._moved)

    def _shown_by(self, call: int) -> torch.Tensor:
        """u of the call before. Of what did not change it is 0; where it has no weight, that before, at first 0."""
        weights = self._moves[call - 1]
        distance = self._level[call] - self._level[call - 1]
        if abs(weights[0]) < 1e-3 * max(abs(distance), sum(map(abs, weights))) or weights[0] == 0.0:
            return self._shown[call - 2] if call > 1 else torch.zeros_like(self._z[call])
        moved = self._z_moved(call)
        for back, weight in enumerate(weights[1:], 1):
            moved = torch.sub(moved, self._shown[call - 1 - back], alpha=weight)
        stays = self._stays if self._before is self._x[call - 1] else self._x[call] == self._x[call - 1]
        assert stays is not None, "the latent before is the one at the last other level"
        return (moved / weights[0]).masked_fill_(stays, 0.0)

    @property
    def shown(self) -> torch.Tensor:
        """As Forecast, with a sampler's earlier outputs taken out of its move."""
        return self._shown[self._calls - 2] if self._calls > 1 else super().shown

    @property
    def change(self) -> torch.Tensor | None:
        """As Forecast; None before the second output is shown."""
        return None if self._bend is None else self._bend[0]

    def predict(self, call: int) -> torch.Tensor:
        """The latent of a later call, in the shape and dtype of the last one; one must have been observed."""
        return self._keep(call, torch.lerp(self._on_a_line(call), self._answering(call), self.doubt))

    def _answering(self, call: int) -> torch.Tensor:
        """z of a later call, if outputs answer to latents as they did."""
        now = self._calls - 1
        z = self._z[now]
        foreseen: dict[int, torch.Tensor] = {}
        for k in range(now, call if now > 0 else now):
            # of the newest latent the output was foreseen when that was observed
            if k == now and self._trial is not None:
                fixed, change = self._trial
            else:
                fixed, change = self._output(k, z * self._scale[k] - self._x[now - 1])
            foreseen[k] = torch.addcmul(fixed, self._gamma, change)
            for back, weight in enumerate(self._moves[k]):
                z = torch.add(z, foreseen[k - back] if k - back >= now else self._shown[k - back], alpha=weight)
        return z

    def _output(self, call: int, moved: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(fixed, change) such that u of ``call`` is foreseen as fixed + γ·change; by the last two u.

        moved: from the last latent whose output was shown to the one of ``call``.
        """
        last = self._calls - 2
        fixed = self._shown[last] + self._secants.times(moved, call)
        if self._bend is None:
            return fixed, torch.zeros_like(fixed)
        distance = self._level[last] - self._level[last - 1]
        share = (self._level[call] - self._level[last]) / distance if abs(distance) > 1e-9 else 0.0
        share = min(share, self._longest * (call - last))
        change, answered = self._bend
        return fixed, share * torch.sub(change, answered, alpha=self._secants.unit(call))
