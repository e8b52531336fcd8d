"""LatentsAhead: what look-ahead knows of a trajectory's latents.

It predicts those of later calls, corrects outputs for what predictions missed, and says which calls cannot be left to
predictions. Calls are counted as those of the noise schedule.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Role
from runtime.driver.astray import Astray
from runtime.driver.call_arguments import Tensors
from runtime.driver.correction import Correction, outputs_of
from runtime.driver.guard import Guard
from runtime.driver.noise_schedule import NoiseSchedule, noise_schedule_of
from runtime.driver.output_forecast import forecast_of
from runtime.driver.outputs_beside import OutputsBeside
from runtime.driver.readback import is_late
from runtime.driver.spent import Spent


class LatentsAhead:
    """The latent inputs of one trajectory.

    Attributes:
        noise_schedule: of the trajectory's calls.
        is_guarded: whether a guard bounds the error of its pictures.
    """

    def __init__(
        self,
        noise_schedule: NoiseSchedule,
        names: Iterable[str],
        reach: int,
        quality: float | None,
        beside: Mapping[str, OutputsBeside],
        spent: Mapping[str, Spent],
    ) -> None:
        """Know nothing of them yet.

        Args:
            noise_schedule: of the trajectory's calls.
            names: of the latent inputs.
            reach: how many calls ahead latents are predicted.
            quality: PSNR in dB that the guard holds pictures to; None: no guard.
            beside: what the generation's streams give, by latent input.
            spent: what its trajectories have passed on, likewise.
        """
        self.noise_schedule = noise_schedule
        self.is_guarded = quality is not None
        self._forecasts = {name: forecast_of(noise_schedule, reach) for name in names}
        self._astray = {name: Astray(noise_schedule) for name in self._forecasts}
        self._corrections = [Correction(noise_schedule, forecast) for forecast in self._forecasts.values()]
        self._guards = [
            Guard(noise_schedule, quality, forecast, beside[name], spent[name])
            for name, forecast in self._forecasts.items()
            if quality is not None
        ]

    @property
    def names(self) -> list[str]:
        """Of the latent inputs."""
        return list(self._forecasts)

    def begin(self, tensors: Tensors) -> None:
        """Take the latents of the first call."""
        for path, forecast in self._forecasts.items():
            forecast.observe(tensors[path])
            if forecast.squares is not None:
                self._astray[path].show(forecast.squares)

    def take(self, tensors: Tensors) -> None:
        """Take the latents of the next call, which show what the last outputs came to."""
        self.begin(tensors)
        for index, correction in enumerate(self._corrections):
            correction.observe()
            if self._guards:
                self._guards[index].observe(correction.sign)

    def refuses(self, call: int) -> tuple[bool, bool]:
        """(whether a call in look-ahead is to be run exactly instead; whether its latent is a stranger's).

        With a guard that is waited for. Without one only what missed by nearly all of a move is refused; on a GPU,
        where to look at the last latent would be to wait for it, by the latent before.
        """
        is_waited_for = self.is_guarded or not any(is_late(each.latent) for each in self._forecasts.values())
        for astray in self._astray.values():
            astray.look(0 if is_waited_for else 1)
        refused = [astray.is_astray for astray in self._astray.values()]
        refused += [bool(guard.refuses(call)) for guard in self._guards]
        stranger = any(astray.has_jumped for astray in self._astray.values())
        return any(refused), stranger and self.noise_schedule.second_share is None

    def refresh(self) -> None:
        """Predict anew, as the pipe is filled anew."""
        for forecast in self._forecasts.values():
            forecast.refresh()
        for astray in self._astray.values():
            astray.begin_anew()

    def inputs_at(
        self, later: int, now: int, graph: TracedGraph, tensors: Tensors, read: Collection[str]
    ) -> dict[str, torch.Tensor]:
        """The inputs of a later call: predicted latents, its timestep, and all else as now.

        later, now: the calls. tensors: inputs of the present one. read: names of the latents that are predicted.
        """
        inputs = dict(tensors)
        for item in graph.inputs:
            if item.role is Role.LATENT and item.name in read:
                inputs[item.name] = self._forecasts[item.name].predict(later)
            elif item.role is Role.TIMESTEP:
                passed = tensors[item.name]
                timesteps = self.noise_schedule.timesteps.shown_by(now, passed)
                if timesteps is not self.noise_schedule.timesteps:
                    self.noise_schedule = replace(self.noise_schedule, timesteps=timesteps)
                inputs[item.name] = timesteps.timestep(later, passed)
        return inputs

    def correct(self, outputs: Sequence[Any], call: int, *, is_exact: bool, is_passed_on: bool) -> list[Any]:
        """A call's outputs, corrected to first order for the error of the latents that were predicted.

        is_exact: whether the call was run exactly. is_passed_on: whether the correction is made, and not only learned.
        """
        made = list(outputs)
        latents = [forecast.latent for forecast in self._forecasts.values()]
        for index, place in enumerate(outputs_of(latents, made)):
            if place is None:
                continue
            self._corrections[index].see(made[place], call)
            if is_passed_on:
                made[place] = self._corrections[index].of(made[place], call, is_exact)
            if self._guards:
                self._guards[index].show(made[place], call)
        return made


def foreseeable(
    graph: TracedGraph, tensors: Tensors, timestep: float | None, scheduler: Any, *, guarded: bool
) -> NoiseSchedule | str:
    """The noise schedule of a trajectory; or why inputs of later calls are neither known nor can be predicted.

    Args:
        graph: of the calls.
        tensors: the first call's inputs by path.
        timestep: that it passes; None where it has none.
        scheduler: that makes the latents; None where there is none.
        guarded: whether a guard has to bound the error.
    """
    unknown = [item.name for item in graph.inputs if item.role is Role.STEP]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        return f"the pipeline may give {unknown[0]}{more} anew at every step"
    times = [tensors[item.name].flatten() for item in graph.inputs if item.role is Role.TIMESTEP]
    if any(bool((time != time[0]).any()) for time in times):
        return "calls have several timesteps at once, such as one per token, and those of later steps are not known"
    if timestep is None:
        return "its calls have no timestep"
    return noise_schedule_of(scheduler, timestep, guarded=guarded)
