"""Forecasts: predict the latents of later denoiser calls from those of past ones.

Legend as in runtime.driver.noise_schedule: x_k is the latent that the pipeline passes at call k, z = x/α, s = σ/α the
level, and a deterministic sampler moves z linearly in s:

    z_{k+1} = z_k + slope_{k+1}·(s_{k+1} - s_k)

The slope of a move is the noise ε that the sampler used for it, with guidance and solver order in it, and is read off
the latents that were passed. So a forecast needs nothing of the sampler's insides.
"""

from __future__ import annotations

import torch

from runtime.driver.damping import NOTHING, damping_of, told_by
from runtime.driver.noise_schedule import NoiseSchedule
from runtime.driver.secants import Secants, flat

# What calls have shown of a denoiser's answers counts for half where predictions missed this share of a move, for 0.9
# where they missed three times as much; of the last moves the worst one tells.
DOUBTED, LAST = 0.1, 3


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
        self._kept = reach + self.checked + self.needs - 2
        self._calls = 0
        self._latent: torch.Tensor | None = None  # the last, as passed
        # by call, all (rows, 1, elements) in float32
        self._x: dict[int, torch.Tensor] = {}  # latents
        self._z: dict[int, torch.Tensor] = {}
        self._slope: dict[int, torch.Tensor] = {}  # of the move to that call
        self._rate: dict[int, torch.Tensor] = {}  # the change of the slope per level, as known at that call
        self._predicted: dict[int, torch.Tensor] = {}  # the earliest prediction
        self._made_at: dict[int, int] = {}  # when that was made
        self._told: dict[tuple[int, int], torch.Tensor] = {}  # by call and distance, what a prediction would have told
        self._before: torch.Tensor | None = None  # the latent at the last other level
        self._stays: torch.Tensor | None = None  # which elements of the last latent are as there
        self._missed: torch.Tensor | None = None  # the last latent less its earliest prediction
        self._squares: torch.Tensor | None = None  # of that, and of its move
        self._doubts: list[torch.Tensor] = []  # by what was missed of each of the last moves
        self._doubt: torch.Tensor | None = None
        self._z_move: tuple[int, torch.Tensor] | None = None  # to a call from the one before
        self._last_moved: tuple[tuple[int, int], torch.Tensor] | None = None  # from one call's latent to another's
        self._secants = Secants(noise_schedule.level, noise_schedule.stiffness)

    def observe(self, latent: torch.Tensor) -> None:
        """Take the latent of the next call, as the pipeline passes it: rows first."""
        call = self._calls
        self._latent = latent.clone()
        self._x[call] = x = flat(self._latent)
        self._z[call] = x / self._scale[call]
        if call > 0 and _apart(self._level[call] - self._level[call - 1]):
            self._before = self._x[call - 1]
        self._stays = None if self._before is None else x == self._before
        self._slope[call] = self._slope_to(call) if call > 0 else torch.zeros_like(x)
        self._doubt = x.new_zeros((len(x), 1, 1)) if self._doubt is None else self._doubt
        self._rate[call] = self._rate_at(call)
        for kept in (self._x, self._z, self._slope, self._rate, self._predicted, self._made_at):
            kept.pop(call - self._kept, None)
        self._told = {key: told for key, told in self._told.items() if key[0] > call - self.checked}
        self._calls += 1
        self._look_back()

    def predict(self, call: int) -> torch.Tensor:
        """The latent of a later call, in the shape and dtype of the last one; one must have been observed."""
        return self._keep(call, self._on_a_line(call))

    def _on_a_line(self, call: int) -> torch.Tensor:
        """z of a later call, on the line or parabola of the last moves."""
        now = self._calls - 1
        fixed, factor = self._terms(now, call)
        return torch.addcmul(fixed, self._damping(now, call - now), self._rate[now], value=factor)

    def _keep(self, call: int, z: torch.Tensor) -> torch.Tensor:
        """Make a prediction of z, put right in it what stays, and keep it to be compared with what comes."""
        now, like = self._calls - 1, self.latent
        predicted = z * self._scale[call]
        if self._stays is not None:
            predicted = torch.where(self._stays, self._x[now], predicted)
        predicted = predicted.to(like.dtype)
        self._predicted.setdefault(call, predicted.float())
        self._made_at.setdefault(call, now)
        shaped = predicted.view(like.shape)
        return shaped if like.is_contiguous() else torch.empty_like(like).copy_(shaped)

    def refresh(self) -> None:
        """Forget the predictions of calls to come: components will work on new ones."""
        for made in (self._predicted, self._made_at):
            for call in [call for call in made if call >= self._calls]:
                del made[call]

    @property
    def latent(self) -> torch.Tensor:
        """The last latent."""
        assert self._latent is not None
        return self._latent

    @property
    def slope(self) -> torch.Tensor:
        """Of the last move, (rows, 1, elements); zero before the first."""
        return self._slope[self._calls - 1]

    @property
    def true(self) -> torch.Tensor:
        """The last latent, (rows, 1, elements) in float32."""
        return self._x[self._calls - 1]

    @property
    def missed(self) -> torch.Tensor | None:
        """``true`` minus its earliest prediction, which the first component worked on; None if not predicted."""
        return self._missed

    @property
    def worked_on(self) -> torch.Tensor:
        """That prediction; ``true`` if it was not predicted."""
        return self._predicted.get(self._calls - 1, self.true)

    @property
    def shown(self) -> torch.Tensor:
        """The slope that the output of the last call but one meant, which the last latent shows; zero before."""
        return self.slope

    @property
    def change(self) -> torch.Tensor | None:
        """Of ``shown``, from the call before; None where that is not known."""
        return None

    def errors(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """What the last latent says of its prediction: (lengths, how many elements move), both (rows, 3 or 4); None if
        it was not predicted.

        They are, over the elements that move, for an image beside the latent is not missed:

            missed    by the last latent
            answer    how much the slope that its call's output means changes by what was missed, to first order
            slope     of the last move
            change    of the slope that the last outputs mean, where it is known
        """
        missed, now = self._missed, self._calls - 1
        if missed is None:
            return None
        change = [] if self.change is None else [self.change]
        vectors = torch.cat([missed, self._secants.times(missed, now), self.slope, *change], 1)
        return torch.linalg.vector_norm(vectors, dim=2), torch.count_nonzero(vectors, dim=2)

    @property
    def length(self) -> float:
        """Of the last move, in latents: what a slope of 1 makes of it."""
        now = self._calls - 1
        distance = abs(self._level[now] - self._level[now - self._calls_per_step])
        return self._scale[now] * distance if _apart(distance) else 0.0

    @property
    def doubt(self) -> torch.Tensor:
        """How bad the last predictions were, from 0 to 1, by row: (rows, 1, 1)."""
        assert self._doubt is not None
        return self._doubt

    @property
    def squares(self) -> torch.Tensor | None:
        """Of what the last latent missed its earliest prediction by, and of its own move: (rows, 2, 1); None if it was
        not predicted.

        The move is that from the latent that was there when it was predicted, or from that of the step before.
        """
        return self._squares

    def _look_back(self) -> None:
        """Compare the last latent with its prediction, if there is one."""
        now = self._calls - 1
        predicted = self._predicted.get(now)
        self._missed = self._squares = None
        if predicted is None:
            return
        self._missed = missed = self._x[now] - predicted
        moved = self._x_moved(min(self._made_at[now], now - self._calls_per_step))
        self._squares = torch.cat([missed, moved], 1).square().sum(2, keepdim=True)
        off, far = self._squares.chunk(2, 1)
        doubt = off / torch.add(off, far, alpha=DOUBTED**2).clamp_min(NOTHING)
        self._doubts = [*self._doubts[1 - LAST :], doubt]
        self._doubt = torch.stack(self._doubts).amax(0)

    def _x_moved(self, call: int) -> torch.Tensor:
        """The last latent minus that of an earlier call."""
        if self._last_moved is None or self._last_moved[0] != (self._calls - 1, call):
            self._last_moved = (self._calls - 1, call), self._x[self._calls - 1] - self._x[call]
        return self._last_moved[1]

    def _slope_to(self, call: int) -> torch.Tensor:
        """The slope of the move to a call from the one before it; if both are at one level, the slope before that."""
        distance = self._level[call] - self._level[call - 1]
        return self._z_moved(call) / distance if _apart(distance) else self._slope[call - 1]

    def _z_moved(self, call: int) -> torch.Tensor:
        """z of a call minus that of the call before."""
        if self._z_move is None or self._z_move[0] != call:
            self._z_move = call, self._z[call] - self._z[call - 1]
        return self._z_move[1]

    def _terms(self, now: int, call: int) -> tuple[torch.Tensor, float]:
        """(fixed, factor) such that z of a call is predicted as fixed + γ·factor·rate, from what call ``now`` knew."""
        level, at = self._level, self._place(now)
        fixed = torch.add(self._z[now], self._slope[now], alpha=level[call] - level[now])
        return fixed, sum((level[k + 1] - level[k]) * (self._place(k + 1) - at) for k in range(now, call))

    def _rate_at(self, now: int) -> torch.Tensor:
        """The change of the slope per unit of place, as known at call ``now``."""
        if now < 2:
            return torch.zeros_like(self._slope[now])
        return rate_of(self._slope[now] - self._slope[now - 1], self._place(now) - self._place(now - 1))

    def _place(self, call: int) -> float:
        """Where the slope of the move to a call is taken to hold: the level in the middle of the move."""
        return (self._level[max(call - 1, 0)] + self._level[call]) / 2

    def _damping(self, now: int, ahead: int) -> torch.Tensor:
        """γ for predictions ``ahead`` calls ahead: (rows, 1, 1)."""
        known = range(max(now - self.checked, ahead + self.needs - 2) + 1, now + 1)
        return damping_of([self._told_of(call, ahead) for call in known], self._x[now])

    def _told_of(self, call: int, ahead: int) -> torch.Tensor:
        """What a prediction of a latent that is known would have told of γ; see damping_of."""
        if (call, ahead) not in self._told:
            fixed, factor = self._terms(call - ahead, call)
            self._told[call, ahead] = told_by(self._z[call] - fixed, factor * self._rate[call - ahead])
        return self._told[call, ahead]


def rate_of(change: torch.Tensor, distance: float) -> torch.Tensor:
    """A change over the distance between two levels or places; 0 where that is none."""
    return change / distance if _apart(distance) else torch.zeros_like(change)


def _apart(distance: float) -> bool:
    """Whether a distance between two levels or places is not zero, up to rounding."""
    return abs(distance) > 1e-9
