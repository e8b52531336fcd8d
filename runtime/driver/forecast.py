"""Forecasts: the latents of later denoiser calls from those of past ones.

Legend as in runtime/driver/noise_schedule.py: call k passes the latent x_k, z = x/α, and z moves linearly
in the level s. The slope of a move is the effective ε, guidance and solver order included, so that nothing of the
sampler's insides is needed.
"""

from __future__ import annotations

import torch

from runtime.driver.noise_schedule import NoiseSchedule


def forecast_of(course: NoiseSchedule, reach: int) -> Forecast:
    """The forecast that suits a course's sampler. reach: how many calls ahead it is asked for at most."""
    if course.second_share is not None:
        return TwoCallForecast(course, reach)
    if course.multistep:
        return MultistepForecast(course, reach)
    return FlowForecast(course, reach) if course.flow else Forecast(course, reach)


class Forecast:
    """Predicts one latent input of later calls from those of past calls.

    The slope of later moves is that of the last one plus γ times what it changes by, at the rate per level that the
    last two show. γ, one per row of the batch, is what would have predicted the last latents best, as far ahead as now
    (least squares, between 0 and 1; 1 until that is known, for the first latents are exact).

    Elements that did not change in the last move (an image or a mask beside the latent) are taken to stay.
    """

    limit, unknown = 1.0, 1.0  # of γ: its largest value, and what it is until known
    checked = 2  # how many of the last latents decide on γ
    needs = 3  # how many latents the slope and its change need

    def __init__(self, course: NoiseSchedule, reach: int) -> None:
        """reach: how many calls ahead ``predict`` is asked for at most; as much of the past is kept."""
        self._course = course
        self._kept = reach + self.checked + self.needs - 2
        self._calls = 0
        self._latents: dict[int, torch.Tensor] = {}  # by call, as passed
        self._z: dict[int, torch.Tensor] = {}
        self._slope: dict[int, torch.Tensor] = {}  # of the move to that call
        self._before: torch.Tensor | None = None  # the latent at the last other level
        self._predicted: dict[int, torch.Tensor] = {}  # by call, the earliest prediction

    def observe(self, latent: torch.Tensor) -> None:
        """Take the latent of the next call."""
        call = self._calls
        self._z[call] = latent.float() / self._course.scale[call]
        if call > 0 and _apart(self._course.level[call] - self._course.level[call - 1]):
            self._before = self._latents[call - 1]
        self._latents[call] = latent.detach().clone()
        self._slope[call] = self._slope_to(call) if call > 0 else torch.zeros_like(self._z[call])
        for kept in (self._latents, self._z, self._slope, self._predicted):
            kept.pop(call - self._kept, None)
        self._calls += 1

    def predict(self, call: int) -> torch.Tensor:
        """The latent of a later call; at least one has been observed."""
        now = self._calls - 1
        fixed, change = self._terms(now, call)
        z = fixed + self._damping(now, call - now) * change
        predicted = (z * self._course.scale[call]).to(self._latents[now].dtype)
        if self._before is not None:
            same = self._latents[now] == self._before
            predicted = torch.where(same, self._latents[now], predicted)
        self._predicted.setdefault(call, predicted)
        return predicted

    def missed(self) -> torch.Tensor | None:
        """The latent observed last minus its earliest prediction, which the first component worked on; None without."""
        now = self._calls - 1
        predicted = self._predicted.get(now)
        return None if predicted is None else self._latents[now].float() - predicted.float()

    def _slope_to(self, call: int) -> torch.Tensor:
        """The slope of the move to a call from the one before it; of no move, the last one."""
        distance = self._course.level[call] - self._course.level[call - 1]
        return (self._z[call] - self._z[call - 1]) / distance if _apart(distance) else self._slope[call - 1]

    def _terms(self, now: int, call: int) -> tuple[torch.Tensor, torch.Tensor]:
        """ẑ_call = fixed + γ·change, from what was known at call ``now``."""
        slope, at, rate = self._slopes(now)
        level = self._course.level
        fixed = self._z[now] + slope * (level[call] - level[now])
        return fixed, rate * sum((level[k + 1] - level[k]) * (self._place(k + 1) - at) for k in range(now, call))

    def _slopes(self, now: int) -> tuple[torch.Tensor, float, torch.Tensor]:
        """(slope, its place, its change per unit of place), as known at call ``now``; 0 for no change."""
        last, at = self._slope[now], self._place(now)
        if now < 2:
            return last, at, torch.zeros_like(last)
        return last, at, _rate(last - self._slope[now - 1], at - self._place(now - 1))

    def _place(self, call: int) -> float:
        """Where the slope of the move to a call is taken to hold: at the level in the middle of the move."""
        return (self._course.level[max(call - 1, 0)] + self._course.level[call]) / 2

    def _damping(self, now: int, ahead: int) -> torch.Tensor:
        """γ."""
        rows = self._latents[now].shape[0]
        shape = (rows,) + (1,) * (self._latents[now].dim() - 1)
        shared = torch.zeros(rows, device=self._latents[now].device)
        norm = torch.zeros_like(shared)
        for known in range(now - self.checked + 1, now + 1):
            if known - ahead < self.needs - 1:
                continue
            fixed, change = self._terms(known - ahead, known)
            missed = (self._z[known] - fixed).flatten(1)
            shared += (missed * change.flatten(1)).sum(1)
            norm += (change.flatten(1) ** 2).sum(1)
        gamma = torch.where(norm > 0, shared / norm.clamp_min(1e-30), torch.full_like(norm, self.unknown))
        return gamma.clamp(0.0, self.limit).view(shape)


class FlowForecast(Forecast):
    """Of flow matching: γ is 0 until known, for the first slopes change fast and not steadily."""

    unknown = 0.0


class MultistepForecast(Forecast):
    """Of a sampler whose moves are made of several outputs.

    The slope is the mean of the last two, and its change, per move, is from the mean of the two before them: what
    alternates cancels in both. γ is at most 1/2, and 0 until known.
    """

    limit, unknown = 0.5, 0.0
    needs = 5

    def _slopes(self, now: int) -> tuple[torch.Tensor, float, torch.Tensor]:
        if now < 2:
            return super()._slopes(now)
        mean = (self._slope[now] + self._slope[now - 1]) / 2
        if now < 4:
            return mean, now - 0.5, torch.zeros_like(mean)
        older = (self._slope[now - 2] + self._slope[now - 3]) / 2
        return mean, now - 0.5, _rate(mean - older, 2.0)

    def _place(self, call: int) -> float:
        return float(call)


class TwoCallForecast(Forecast):
    """Of a sampler that calls the denoiser twice per step: at even calls on the step's latent, at odd ones on what the
    first output alone would make of it (Heun's method, the midpoint method).

    What is kept as the slope to a call is the output of the call before it, which the latent that came shows: of the
    first call by the move to the second, of the second by the step without the first's share. Outputs of later calls
    are foreseen, the steps are made of them.
    """

    checked, needs = 4, 4

    def _slope_to(self, call: int) -> torch.Tensor:
        if call % 2:
            return super()._slope_to(call)
        share = self._course.second_share
        assert share is not None
        whole = (self._z[call] - self._z[call - 2]) / (self._course.level[call] - self._course.level[call - 2])
        made: torch.Tensor = (whole - (1 - share) * self._slope[call - 1]) / share
        return made

    def _terms(self, now: int, call: int) -> tuple[torch.Tensor, torch.Tensor]:
        level, share = self._course.level, self._course.second_share
        assert share is not None
        output, at, rate = self._slopes(now)

        def later(k: int) -> tuple[torch.Tensor, float]:
            """(known part, factor of the rate) of the output of call k."""
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
        """(output of the last call, its level, its change per level): the change is from the last first call of a step
        at another level."""
        last, at = self._slope[now], self._course.level[max(now - 1, 0)]
        older = now - 2 if now % 2 == 0 else now - 3
        if older < 0:
            return last, at, torch.zeros_like(last)
        return last, at, _rate(last - self._slope[older + 1], at - self._course.level[older])


def _rate(change: torch.Tensor, distance: float) -> torch.Tensor:
    return change / distance if _apart(distance) else torch.zeros_like(change)


def _apart(distance: float) -> bool:
    """Whether two calls are at different levels, or places."""
    return abs(distance) > 1e-9
