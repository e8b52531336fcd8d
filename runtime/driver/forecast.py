"""Forecasts: predict the latents of later denoiser calls from those of past ones.

Legend as in runtime.driver.noise_schedule: x_k is the latent that the pipeline passes at call k, z = x/α, s = σ/α the
level, and a deterministic sampler moves z linearly in s:

    z_{k+1} = z_k + slope_{k+1}·(s_{k+1} - s_k)

The slope of a move is the noise ε that the sampler used for it, with guidance and solver order in it, and is read off
the latents that were passed. So a forecast needs nothing of the sampler's insides.
"""

from __future__ import annotations

import torch

from runtime.driver.noise_schedule import NoiseSchedule
from runtime.driver.secants import Secants, per_row

# A prediction that misses by a larger share of the latent's move is of no use, with samplers whose gain is at most 2.
# With others the share is smaller by as much, for their moves amplify the errors that predictions cause.
USEFUL, GAIN = 0.75, 2.0
# What calls have shown of a denoiser's answers counts for half where predictions missed this share of a move, for 0.9
# where they missed three times as much; of the last moves the worst one tells.
DOUBTED, LAST = 0.1, 3
WELL = 4.0  # what misses by a share that is smaller by so much is predicted well


class Forecast:
    """Predicts one latent input of later calls from those of past calls.

    The slopes of later moves are extrapolated linearly in the level from the slopes of the last two moves, and the
    extrapolated change is multiplied by a damping factor γ. There is one γ per row of the batch: the one that would
    have predicted the last ``checked`` latents best, at the same distance (least squares, clamped to [0, 1]).
    Until that many latents are known γ is 1, since the first latents are exact.

    Elements that did not change in the last move (an image or a mask beside the latent) are predicted to stay.
    """

    checked = 2  # how many of the last latents γ is fitted to
    needs = 3  # how many latents a slope and its change are computed from

    def __init__(self, noise_schedule: NoiseSchedule, reach: int) -> None:
        """Start without latents.

        Args:
            noise_schedule: of the trajectory's calls.
            reach: how many calls ahead ``predict`` will be asked for at most; so much more of the past is kept.
        """
        self.reach = reach
        self._scale, self._level = noise_schedule.scale, noise_schedule.level  # by call
        self._second_share = noise_schedule.second_share
        self._calls_per_step = 1 if noise_schedule.second_share is None else 2
        self._useful = USEFUL * min(1.0, GAIN / noise_schedule.gain)
        self._kept = reach + self.checked + self.needs - 2
        self._calls = 0
        self._latents: dict[int, torch.Tensor] = {}  # by call, as passed
        self._z: dict[int, torch.Tensor] = {}
        self._slope: dict[int, torch.Tensor] = {}  # of the move to that call
        self._before: torch.Tensor | None = None  # the latent at the last other level
        self._predicted: dict[int, torch.Tensor] = {}  # by call, the earliest prediction
        self._made_at: dict[int, int] = {}  # by call, when that was made
        self._astray: torch.Tensor | None = None  # whether the last latent was
        self._shares: list[torch.Tensor] = []  # of the last moves, the share that was missed, squared, by row
        self._secants = Secants(noise_schedule.level, noise_schedule.stiffness)

    def observe(self, latent: torch.Tensor) -> None:
        """Take the latent of the next call, as the pipeline passes it: rows first."""
        call = self._calls
        self._z[call] = latent.float() / self._scale[call]
        if call > 0 and _apart(self._level[call] - self._level[call - 1]):
            self._before = self._latents[call - 1]
        self._latents[call] = latent.detach().clone()
        self._slope[call] = self._slope_to(call) if call > 0 else torch.zeros_like(self._z[call])
        for kept in (self._latents, self._z, self._slope, self._predicted, self._made_at):
            kept.pop(call - self._kept, None)
        self._calls += 1
        self._astray = self._missed_much()

    def predict(self, call: int) -> torch.Tensor:
        """The latent of a later call, in the shape and dtype of the last one; one must have been observed."""
        return self._keep(call, self._on_a_line(call))

    def _on_a_line(self, call: int) -> torch.Tensor:
        """z of a later call, on the line or parabola of the last moves."""
        now = self._calls - 1
        fixed, change = self._terms(now, call)
        return fixed + self._damping(now, call - now) * change

    def _keep(self, call: int, z: torch.Tensor) -> torch.Tensor:
        """Make a prediction of z, put right in it what stays, and keep it to be compared with what comes."""
        now = self._calls - 1
        predicted = (z * self._scale[call]).to(self._latents[now].dtype)
        if self._before is not None:
            same = self._latents[now] == self._before
            predicted = torch.where(same, self._latents[now], predicted)
        self._predicted.setdefault(call, predicted)
        self._made_at.setdefault(call, now)
        return predicted

    def refresh(self) -> None:
        """Forget the predictions of calls to come: components will work on new ones."""
        for made in (self._predicted, self._made_at):
            for call in [call for call in made if call >= self._calls]:
                del made[call]

    @property
    def latent(self) -> torch.Tensor:
        """The last latent."""
        return self._latents[self._calls - 1]

    @property
    def slope(self) -> torch.Tensor:
        """Of the last move; zero before the first."""
        return self._slope[self._calls - 1]

    def missed(self) -> torch.Tensor | None:
        """The last latent minus its earliest prediction, which the first component worked on; None if not predicted."""
        now = self._calls - 1
        predicted = self._predicted.get(now)
        return None if predicted is None else self._latents[now].float() - predicted.float()

    @property
    def shown(self) -> torch.Tensor:
        """The slope that the output of the last call but one meant, which the last latent shows; zero before."""
        return self.slope

    def surprise(self) -> torch.Tensor | None:
        """By row, what the last latent missed in terms of the slope of its last move, as root mean square over the
        elements that move; None if it was not predicted.

        So large an error the output's answer to that can be: where it is larger the sampler itself overshoots.
        """
        missed, now = self.missed(), self._calls - 1
        if missed is None:
            return None
        distance = abs(self._level[now] - self._level[now - self._calls_per_step])
        far = rms_of_moving(missed)
        return far / (self._scale[now] * distance) if _apart(distance) else torch.zeros_like(far)

    def answer(self, moved: torch.Tensor, call: int) -> torch.Tensor:
        """How much the slope that a call's output means changes if its latent does by ``moved``, to first order."""
        return self._secants.times(moved, call)

    @property
    def doubt(self) -> torch.Tensor:
        """How bad the last predictions were, from 0 to 1, by row, in a shape that multiplies the latent."""
        if not self._shares:
            return torch.zeros((), dtype=torch.float32).to(self.latent.device)
        most = torch.stack(self._shares).amax(0)
        return per_row(most / (most + DOUBTED**2), self.latent)

    def is_astray(self) -> torch.Tensor | None:
        """Whether the last latent missed its earliest prediction by too much of its own move, over all rows, in one
        value; None if it was not predicted.

        The move is that from the latent that was there when it was predicted, or from that of the step before. Near 1
        to hold that latent would have been no worse; and errors add up from call to call.
        """
        return self._astray

    def has_jumped(self) -> torch.Tensor | None:
        """Whether the last latent is astray though those before were predicted well, in one value; None if not known.

        Then what is known of them says nothing of what comes: the latent is of somebody else's making.
        """
        if self._astray is None or len(self._shares) < 2:
            return None
        well = torch.stack(self._shares[:-1]).amax() < (self._useful / WELL) ** 2
        return self._astray & well

    def _missed_much(self) -> torch.Tensor | None:
        now, missed = self._calls - 1, self.missed()
        if missed is None:
            return None
        before = self._latents[min(self._made_at[now], now - self._calls_per_step)]
        moved = self._latents[now].float() - before.float()
        rows = [part.flatten(1).square().sum(1) for part in (missed, moved)]
        self._shares = [*self._shares[1 - LAST :], rows[0] / rows[1].clamp_min(1e-30)]
        return rows[0].sum() > self._useful**2 * rows[1].sum()

    def _slope_to(self, call: int) -> torch.Tensor:
        """The slope of the move to a call from the one before it; if both are at one level, the slope before that."""
        distance = self._level[call] - self._level[call - 1]
        return (self._z[call] - self._z[call - 1]) / distance if _apart(distance) else self._slope[call - 1]

    def _terms(self, now: int, call: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(fixed, change) such that z of ``call`` is predicted as fixed + γ·change, from what call ``now`` knew."""
        slope, at, rate = self._slopes(now)
        level = self._level
        fixed = self._z[now] + slope * (level[call] - level[now])
        return fixed, rate * sum((level[k + 1] - level[k]) * (self._place(k + 1) - at) for k in range(now, call))

    def _slopes(self, now: int) -> tuple[torch.Tensor, float, torch.Tensor]:
        """(slope, the place where it holds, its change per unit of place), as known at call ``now``."""
        last, at = self._slope[now], self._place(now)
        if now < 2:
            return last, at, torch.zeros_like(last)
        return last, at, _rate(last - self._slope[now - 1], at - self._place(now - 1))

    def _place(self, call: int) -> float:
        """Where the slope of the move to a call is taken to hold: the level in the middle of the move."""
        return (self._level[max(call - 1, 0)] + self._level[call]) / 2

    def _damping(self, now: int, ahead: int) -> torch.Tensor:
        """γ for predictions ``ahead`` calls ahead, one per row, in a shape that multiplies the latent."""
        latent = self._latents[now]
        shared = torch.zeros(latent.shape[0], dtype=torch.float32, device=latent.device)
        norm = torch.zeros_like(shared)
        for known in range(now - self.checked + 1, now + 1):
            if known - ahead < self.needs - 1:
                continue
            fixed, change = self._terms(known - ahead, known)
            missed = (self._z[known] - fixed).flatten(1)
            shared += (missed * change.flatten(1)).sum(1)
            norm += (change.flatten(1) ** 2).sum(1)
        return per_row(damping_of(shared, norm), latent)


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
            self._secants.show(self._latents[now - 1], self._slope[now], now - 1)

    def _slope_to(self, call: int) -> torch.Tensor:
        if call % 2:
            return super()._slope_to(call)
        share = self._second_share
        assert share is not None
        whole = (self._z[call] - self._z[call - 2]) / (self._level[call] - self._level[call - 2])
        made: torch.Tensor = (whole - (1 - share) * self._slope[call - 1]) / share
        return made

    def _terms(self, now: int, call: int) -> tuple[torch.Tensor, torch.Tensor]:
        level, share = self._level, self._second_share
        assert share is not None
        output, at, rate = self._slopes(now)

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
        return known, rate * factor

    def _slopes(self, now: int) -> tuple[torch.Tensor, float, torch.Tensor]:
        """(output of the last call that has shown it, its level, its change per level).

        The change is taken to the first call of a step that came before and was at another level.
        """
        last, at = self._slope[now], self._level[max(now - 1, 0)]
        older = now - 2 if now % 2 == 0 else now - 3
        if older < 0:
            return last, at, torch.zeros_like(last)
        return last, at, _rate(last - self._slope[older + 1], at - self._level[older])


def rms_of_moving(missed: torch.Tensor) -> torch.Tensor:
    """Root mean square by row over the elements that are not 0: an image beside the latent, which stays, is not missed.

    >>> rms_of_moving(torch.tensor([[3.0, -3.0, 0.0]]))
    tensor([3.])
    """
    flat = missed.flatten(1)
    return (flat.square().sum(1) / (flat != 0).sum(1).clamp_min(1)).sqrt()


def damping_of(shared: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """γ by row, by least squares; 1 where nothing is known.

    Args:
        shared: of each row the products of the changes that were predicted with what was missed without them, summed.
        norm: the changes' squares, summed.
    """
    return torch.where(norm > 0, shared / norm.clamp_min(1e-30), 1.0).clamp(0.0, 1.0)


def _rate(change: torch.Tensor, distance: float) -> torch.Tensor:
    return change / distance if _apart(distance) else torch.zeros_like(change)


def _apart(distance: float) -> bool:
    """Whether a distance between two levels or places is not zero, up to rounding."""
    return abs(distance) > 1e-9
