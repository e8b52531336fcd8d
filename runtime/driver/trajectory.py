"""Trajectory: what the driver remembers of one cache context, from call to call.

diffusers' pipelines without contexts have one; those that call the denoiser several times per step under
``cache_context`` have one for each name, and their lagged values never mix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from partitioner.graph.ir import Role, TracedGraph
from partitioner.plan.schedule import Run, Schedule
from runtime.driver.call_arguments import Tensors
from runtime.driver.correction import corrected
from runtime.driver.forecast import Forecast, forecast_of
from runtime.driver.noise_schedule import NoiseSchedule, noise_schedule_of


@dataclass(frozen=True)
class RunMode:
    """How trajectories are run. mode: "exact", "async" or "lookahead"."""

    components: int
    mode: str
    warmup: int
    periods: tuple[int, ...]


@dataclass(frozen=True)
class _Seen:
    """A prompt input as it was last seen: the caller's tensor, its version then, and what it held."""

    tensor: torch.Tensor
    version: int
    copy: torch.Tensor


@dataclass
class Trajectory:
    """The present trajectory of one cache context.

    number: of the context, in message keys; the next ``micro-batches`` numbers are theirs. call: the next call of this
    trajectory. base: the step number of its call 0; step numbers never fall within a context.
    """

    number: int
    manner: RunMode
    call: int = 0
    base: int = 0
    _next_base: int = 0
    _what: object = None  # the graph and the number of branches of its calls
    _marker: object = None  # the scheduler's timesteps, which every run of a pipeline makes anew
    _timestep: float | None = None
    _prompts: dict[str, _Seen] = field(default_factory=dict)
    _unannounced: list[list[list[int]]] = field(default_factory=list)  # [reader][source] -> steps
    _schedule: Schedule | None = None
    _course: NoiseSchedule | None = None
    _forecasts: dict[str, Forecast] = field(default_factory=dict)  # by latent input
    _begun: set[tuple[int, int]] = field(default_factory=set)  # (context, component) that have run in it

    @property
    def schedule(self) -> Schedule:
        assert self._schedule is not None, "no call has been made"
        return self._schedule

    def advance(self, graph: TracedGraph, branches: int, tensors: Tensors, scheduler: Any) -> None:
        """Take the inputs of the next call.

        A trajectory starts when the pipeline's scheduler has new timesteps, the timestep rises or is not the one that
        was looked ahead to, the graph is another, or a prompt input has changed.
        """
        fresh = self._take_prompts(graph, tensors)
        timestep = _timestep_of(graph, tensors)
        marker = getattr(scheduler, "timesteps", None)
        rose = timestep is None or self._timestep is None or timestep > self._timestep
        astray = self._course is not None and not self._course.expects(self.call, timestep or 0.0)
        what = (id(graph), branches)
        start = rose or astray or fresh or marker is not self._marker or what != self._what
        self._marker, self._timestep, self._what = marker, timestep, what
        if start:
            self._start(graph, timestep, scheduler)
        for path, forecast in self._forecasts.items():
            forecast.observe(tensors[path])

    def _start(self, graph: TracedGraph, timestep: float | None, scheduler: Any) -> None:
        """Choose the mode: look-ahead where the trajectory's course is known, else async."""
        manner = self.manner
        mode, warmup, reach = manner.mode, manner.warmup, manner.components - 1
        self.call, self.base = 0, self._next_base
        self._unannounced = [[[] for _ in range(manner.components)] for _ in range(manner.components)]
        self._course, self._forecasts = None, {}
        self._begun.clear()
        if mode == "lookahead" and reach > 0:
            self._course = noise_schedule_of(scheduler, timestep) if timestep is not None else None
            if self._course is None:
                mode = "async"
            else:
                # the first prediction needs the slope of one move, and is made ``reach`` calls ahead
                warmup = max(warmup, reach + 1)
                latents = [item.name for item in graph.inputs if item.role is Role.LATENT]
                self._forecasts = {name: forecast_of(self._course, reach) for name in latents}
        course = self._course
        calls, finish = (course.calls, course.finish) if course is not None else (None, 0)
        self._schedule = Schedule(manner.components, mode, warmup, manner.periods, calls=calls, finish=finish)

    def runs(self, heard: bool = True) -> list[Run]:
        """What to run at this call; remembered as announced to nobody yet where its messages will be ``heard`` of."""
        runs = self.schedule.runs(self.call)
        if self.is_lagged and heard:
            for run in runs:
                for reader in self._unannounced:
                    reader[run.component].append(self.base + run.call)
        return runs

    def begin(self, context: int, component: int) -> bool:
        """Whether a component is now told for the first time in this trajectory to run in a context."""
        first = (context, component) not in self._begun
        self._begun.add((context, component))
        return first

    @property
    def is_lagged(self) -> bool:
        """Whether reads may be of earlier calls, so that predictors must see every message."""
        return self.schedule.mode == "async"

    @property
    def ahead(self) -> int | None:
        """In look-ahead the first step that is not run exactly."""
        return self.base + self.schedule.warmup if self.schedule.mode == "lookahead" else None

    def announce(self, component: int) -> tuple[tuple[int, ...], ...]:
        """Per source, the steps that a component has not been told of yet; none where nothing is lagged."""
        news = tuple(map(tuple, self._unannounced[component])) if self.is_lagged else ()
        self._unannounced[component] = [[] for _ in news]
        return news

    def correct(self, output: Any) -> Any:
        """This call's output; of components that worked on a predicted latent, what the true one would have given."""
        if self.schedule.is_exact(self.call) or self._course is None or not isinstance(output, torch.Tensor):
            return output
        for forecast in self._forecasts.values():
            missed = forecast.missed()
            if missed is not None:
                output = corrected(output, missed, self._course.sensitivity[self.call])
        return output

    def done(self, runs: Sequence[Run]) -> None:
        """The call is over."""
        self.call += 1
        self._next_base = self.base + max(self.call, *(run.call + 1 for run in runs))

    def inputs_at(self, call: int, graph: TracedGraph, tensors: Tensors) -> Mapping[str, torch.Tensor]:
        """The inputs of this or a later call: predicted latents and that call's timestep; all else as now."""
        if call == self.call:
            return tensors
        assert self._course is not None, "only look-ahead runs later calls"
        later = dict(tensors)
        for item in graph.inputs:
            if item.role is Role.LATENT:
                later[item.name] = self._forecasts[item.name].predict(call)
            elif item.role is Role.TIMESTEP:
                later[item.name] = self._course.timestep(call, tensors[item.name])
        return later

    def _take_prompts(self, graph: TracedGraph, tensors: Tensors) -> bool:
        """Whether a prompt input is not what it was at the last call, even if changed in place."""
        fresh = False
        for item in graph.inputs:
            if item.role > Role.PROMPT:
                continue
            tensor = tensors[item.name]
            # an inference tensor counts no versions, so that its values must be compared
            version = -1 if tensor.is_inference() else tensor._version
            known = self._prompts.get(item.name)
            if known is not None and known.tensor is tensor and known.version == version != -1:
                continue
            if known is None or not _same(known.copy, tensor):
                fresh = True
                self._prompts[item.name] = _Seen(tensor, version, tensor.detach().clone())
            else:
                self._prompts[item.name] = _Seen(tensor, version, known.copy)
        return fresh


def _timestep_of(graph: TracedGraph, tensors: Tensors) -> float | None:
    path = next((item.name for item in graph.inputs if item.role is Role.TIMESTEP), None)
    return float(tensors[path].flatten()[0]) if path is not None else None


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
