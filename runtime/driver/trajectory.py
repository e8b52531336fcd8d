"""Trajectory: what the driver keeps of one stream of calls, and what it has the components run.

Which call belongs to which trajectory is runtime.driver.streams' to say.

Look-ahead with N = 3 components, warmup = 3, a trajectory of 7 calls (0 to 6). Under each call of the pipeline stand
the calls that a component then computes, in this order; ``.`` is nothing:

    call of the pipeline   0    1    2      3    4    5    6
    component 0            0    1    2,3,4  5    6    .    .
    component 1            0    1    2,3    4    5    6    .
    component 2            0    1    2      3    4    5    6
                           (1)  (1)  (2)    (3)  (3)  (4)  (4)

(1) exact: every component computes the pipeline's own call.
(2) exact too, and the pipe fills: component i goes on with the N-1-i calls after it, on latents that the forecast
    predicts. That needs one move of the latent, so that warmup is at least 2.
(3) the pipe is full: component i computes call c + N-1-i. It reads what component j < i computed for the same call,
    i - j calls of the pipeline ago: at call 4, component 2 reads for call 4 what component 1 made at call 3 and
    component 0 at call 2. The last component's output is the pipeline's, corrected for the forecast's error.
(4) the trajectory ends, and the pipe drains.

A call in look-ahead that the guard refuses is run as (2): exactly, and the pipe is filled anew with predictions that
know its latent. That takes the time of one exact call.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Role
from partitioner.plan.schedule import ComponentRun, Schedule
from runtime.driver.astray import Astray
from runtime.driver.call_arguments import Tensors
from runtime.driver.correction import Correction, outputs_of
from runtime.driver.forecast import Forecast
from runtime.driver.guard import Guard
from runtime.driver.noise_schedule import NoiseSchedule, noise_schedule_of
from runtime.driver.output_forecast import forecast_of
from runtime.driver.outputs_beside import OutputsBeside, outputs_by_latent
from runtime.driver.readback import is_late
from runtime.driver.spent import Spent, spent_by_latent
from runtime.driver.warn_once import warn_once

# why a call is exact; runtime.driver.generations has more
WARM_UP, LAST_CALLS = "warm-up", "last calls of the sampler"
GUARDED, ASTRAY = "quality guard", "latent not as predicted"
UNFORESEEN = "later latents cannot be predicted"
MODE, ONE_COMPONENT = "exact mode", "branches of one component"


@dataclass(frozen=True)
class RunMode:
    """How trajectories are run.

    Attributes:
        components: how many components a branch has.
        mode: "exact", "async" or "lookahead".
        warmup: how many first calls are exact.
        periods: by component, every how many calls it computes.
        correct: whether look-ahead's outputs are corrected for the error of the predicted latent.
        quality: PSNR in dB that the guard holds look-ahead's pictures to; None: no guard.
    """

    components: int
    mode: str
    warmup: int
    periods: tuple[int, ...]
    correct: bool = True
    quality: float | None = None


@dataclass
class Trajectory:
    """One trajectory.

    Calls are counted from where it last started with exact calls; step = base + call, and steps never fall within a
    context, whose number the next trajectory may have.

    Attributes:
        number: of the context, in message keys; the numbers that follow are those of its micro-batches.
        run_mode: how it is run.
        warned: what the user has been warned of, by all trajectories of the engine.
        base: the step of call 0.
        call: the present call, or the next one between two calls.
        next_base: the step after all that were run.
        cause: why it started, so that its first calls are exact.
        beside: what the generation's streams give, by latent input.
        spent: what the generation's trajectories have passed on, likewise.
    """

    number: int
    run_mode: RunMode
    warned: set[str] = field(default_factory=set)
    base: int = 0
    cause: str = WARM_UP
    beside: defaultdict[str, OutputsBeside] = field(default_factory=outputs_by_latent)
    spent: defaultdict[str, Spent] = field(default_factory=spent_by_latent)
    call: int = 0
    next_base: int = 0
    _unannounced: list[list[list[int]]] = field(default_factory=list)  # [reader][source] -> steps
    _schedule: Schedule | None = None
    _noise_schedule: NoiseSchedule | None = None  # in look-ahead
    _forecasts: dict[str, Forecast] = field(default_factory=dict)  # by latent input
    _corrections: list[Correction] = field(default_factory=list)
    _begun: set[tuple[int, int]] = field(default_factory=set)  # (context, component) that have run in it
    _guards: list[Guard] = field(default_factory=list)  # as corrections; none without a guard
    _passed: int = 0  # calls of the noise schedule before call 0
    _astray: dict[str, Astray] = field(default_factory=dict)  # as forecasts

    def __post_init__(self) -> None:
        self.next_base = self.base

    @property
    def schedule(self) -> Schedule:
        """Which components run which calls."""
        assert self._schedule is not None, "no call has been made"
        return self._schedule

    @property
    def mode_now(self) -> str:
        """How the present call is run: "exact", "async" or "lookahead"."""
        return "exact" if self.schedule.is_exact(self.call) else self.schedule.mode

    @property
    def is_exact(self) -> bool:
        """Whether all calls are exact, so that nothing but prompts is kept from one for others."""
        return self.schedule.mode == "exact" or self.run_mode.components == 1

    @property
    def reason(self) -> str | None:
        """Why the present call is exact; None where it is not."""
        if self.mode_now != "exact":
            return None
        if self.run_mode.components == 1:
            return ONE_COMPONENT
        if self.run_mode.mode == "exact":
            return MODE
        started = self.call < self.schedule.warmup or self.schedule.mode == "exact"
        return self.cause if started else LAST_CALLS

    @property
    def is_lagged(self) -> bool:
        """Whether reads may be of earlier calls, so that predictors must see every message."""
        return self.schedule.mode == "async"

    @property
    def ahead(self) -> int | None:
        """In look-ahead the first step that is not exact; None in other modes."""
        return self.base + self.schedule.warmup if self.schedule.mode == "lookahead" else None

    @property
    def is_new(self) -> bool:
        """Whether the present call is the first that is known of; one that the guard has run exactly is not."""
        return self._passed + self.call == 0

    def expects(self, timestep: float) -> bool:
        """Whether the next call may pass this timestep: look-ahead has begun calls with those that it expects."""
        schedule = self._noise_schedule
        return schedule is None or schedule.timesteps.expects(self._passed + self.call, timestep)

    def start(self, graph: TracedGraph, tensors: Tensors, timestep: float | None, scheduler: Any) -> None:
        """Take the inputs of the first call: look-ahead where later ones can be foreseen; else exact, without a guard
        async.

        Args:
            graph: of the calls.
            tensors: the call's inputs by path.
            timestep: that it passes; None where it has none.
            scheduler: that makes the latents; None where there is none.
        """
        mode, known = self.run_mode.mode, None
        if mode == "lookahead" and self.run_mode.components > 1:
            found = self._foreseen(graph, tensors, timestep, scheduler)
            if isinstance(found, str):
                mode = self._instead(found)
            else:
                known = found
        latents = [item.name for item in graph.inputs if item.role is Role.LATENT]
        self._begin(mode, latents, known, self.run_mode.warmup)
        self._observe(tensors)

    def take(self, tensors: Tensors) -> None:
        """Take the inputs of the next call."""
        self._observe(tensors)
        for index, correction in enumerate(self._corrections):
            correction.observe()
            if self._guards:
                self._guards[index].observe(correction.sign)
        if self.mode_now != "lookahead":
            return
        refused, jumped = self._refused()
        if refused:
            self.cause = GUARDED if self._guards else ASTRAY
            if jumped:
                self._begin_anew(tensors)
            else:
                self._restart()

    def _observe(self, tensors: Tensors) -> None:
        for path, forecast in self._forecasts.items():
            forecast.observe(tensors[path])
            if forecast.squares is not None:
                self._astray[path].show(forecast.squares)

    def _begin(self, mode: str, latents: Iterable[str], noise_schedule: NoiseSchedule | None, warmup: int) -> None:
        """Begin with the present call as call 0; noise_schedule: in look-ahead, of the calls from this one on."""
        self._noise_schedule = noise_schedule
        self._passed = 0
        if noise_schedule is not None:
            warmup = max(warmup, 2)  # (2)
            reach = self.run_mode.components - 1
            self._forecasts = {name: forecast_of(noise_schedule, reach) for name in latents}
            self._astray = {name: Astray(noise_schedule) for name in latents}
            self._corrections = [Correction(noise_schedule, forecast) for forecast in self._forecasts.values()]
            quality = self.run_mode.quality
            if quality is not None:
                self._guards = [
                    Guard(noise_schedule, quality, forecast, self.beside[name], self.spent[name])
                    for name, forecast in self._forecasts.items()
                ]
        self._schedule_from_here(mode, warmup)

    def _begin_anew(self, tensors: Tensors) -> None:
        """Run the present call and the next exactly, and forget the latents before."""
        assert self._noise_schedule is not None
        later = self._noise_schedule.after(self._passed + self.call)
        self._begin("lookahead", list(self._forecasts), later, 2)
        self._observe(tensors)

    def _schedule_from_here(self, mode: str, warmup: int) -> None:
        """Have the present call be call 0 of a schedule. warmup: exact calls that it begins with."""
        components, known = self.run_mode.components, self._noise_schedule
        self.call, self.base = 0, self.next_base
        self._unannounced = [[[] for _ in range(components)] for _ in range(components)]
        self._begun.clear()
        for astray in self._astray.values():
            astray.begin_anew()
        calls, finish = (known.calls - self._passed, known.finish) if known is not None else (None, 0)
        self._schedule = Schedule(components, mode, warmup, self.run_mode.periods, calls=calls, finish=finish)

    def _instead(self, refusal: str) -> str:
        """The mode of a trajectory that cannot look ahead; warns once. refusal: why, as the end of a sentence."""
        if self.run_mode.quality is None:
            self._warn(f"Look-ahead is not possible: {refusal}. The trajectory runs in async mode.")
            return "async"
        self._warn(
            f"Look-ahead is not possible: {refusal}. All calls are run exactly, with nothing gained by several "
            'components; quality="off" would run them in async mode, whose error nobody bounds'
        )
        self.cause = UNFORESEEN
        return "exact"

    def _foreseen(
        self, graph: TracedGraph, tensors: Tensors, timestep: float | None, scheduler: Any
    ) -> NoiseSchedule | str:
        """The noise schedule of the calls; or why inputs of later ones are neither known nor can be predicted."""
        unknown = [item.name for item in graph.inputs if item.role is Role.STEP]
        if unknown:
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            return f"the pipeline may give {unknown[0]}{more} anew at every step"
        times = [tensors[item.name].flatten() for item in graph.inputs if item.role is Role.TIMESTEP]
        if any(bool((time != time[0]).any()) for time in times):
            return "calls have several timesteps at once, such as one per token, and those of later steps are not known"
        if timestep is None:
            return "its calls have no timestep"
        return noise_schedule_of(scheduler, timestep, guarded=self.run_mode.quality is not None)

    def _refused(self) -> tuple[bool, bool]:
        """(whether the present call, in look-ahead, is to be run exactly instead; whether its latent is a stranger's).

        With a guard that is waited for. Without one only what missed by nearly all of a move is refused; on a GPU,
        where to look at the last latent would be to wait for it, by the latent before.
        """
        is_waited_for = bool(self._guards) or not any(is_late(each.latent) for each in self._forecasts.values())
        for astray in self._astray.values():
            astray.look(0 if is_waited_for else 1)
        refused = [astray.is_astray for astray in self._astray.values()]
        refused += [bool(guard.refuses(self._passed + self.call)) for guard in self._guards]
        stranger = any(astray.has_jumped for astray in self._astray.values())
        assert self._noise_schedule is not None
        return any(refused), stranger and self._noise_schedule.second_share is None

    def _restart(self) -> None:
        """Run the present call exactly, and fill the pipe anew with what is predicted now."""
        self._passed += self.call
        for forecast in self._forecasts.values():
            forecast.refresh()
        self._schedule_from_here("lookahead", 1)

    def _warn(self, message: str) -> None:
        """Log a warning, once."""
        warn_once(self.warned, message)

    def runs(self, *, announced: bool = True) -> list[ComponentRun]:
        """What to run at this call.

        Args:
            announced: whether predictors will observe the messages that these runs send; then ``announce`` will name
                them to every reader. Messages of micro-batches that no later call reads are not observed.
        """
        runs = self.schedule.runs(self.call)
        if self.is_lagged and announced:
            for run in runs:
                for reader in self._unannounced:
                    reader[run.component].append(self.base + run.call)
        return runs

    def announce(self, component: int) -> tuple[tuple[int, ...], ...]:
        """Per source, the steps whose messages the component will observe and was not told of; none unless async."""
        news = tuple(map(tuple, self._unannounced[component])) if self.is_lagged else ()
        self._unannounced[component] = [[] for _ in news]
        return news

    def begin(self, context: int, component: int) -> bool:
        """Whether this is a component's first run in a context in this trajectory; from now on it is not."""
        first = (context, component) not in self._begun
        self._begun.add((context, component))
        return first

    def inputs_at(
        self, call: int, graph: TracedGraph, tensors: Tensors, read: Collection[str]
    ) -> Mapping[str, torch.Tensor]:
        """The inputs of this or a later call: of a later one predicted latents, its timestep, and all else as now.

        read: names of the inputs that the components read which are to run it; no other latent is predicted.
        """
        if call == self.call:
            return tensors
        assert self._noise_schedule is not None, "only look-ahead runs later calls"
        later = dict(tensors)
        for item in graph.inputs:
            if item.role is Role.LATENT and item.name in read:
                later[item.name] = self._forecasts[item.name].predict(self._passed + call)
            elif item.role is Role.TIMESTEP:
                passed = tensors[item.name]
                timesteps = self._noise_schedule.timesteps.shown_by(self._passed + self.call, passed)
                if timesteps is not self._noise_schedule.timesteps:
                    self._noise_schedule = replace(self._noise_schedule, timesteps=timesteps)
                later[item.name] = timesteps.timestep(self._passed + call, passed)
        return later

    def correct(self, outputs: Sequence[Any]) -> list[Any]:
        """This call's outputs, corrected to first order for the error of the latents that look-ahead predicted."""
        made, call = list(outputs), self._passed + self.call
        latents = [forecast.latent for forecast in self._forecasts.values()]
        for index, place in enumerate(outputs_of(latents, made)):
            if place is None:
                continue
            self._corrections[index].see(made[place], call)
            if self.run_mode.correct:
                made[place] = self._corrections[index].of(made[place], call, self.mode_now == "exact")
            if self._guards:
                self._guards[index].show(made[place], call)
        return made

    def done(self, runs: Sequence[ComponentRun]) -> None:
        """End the present call. runs: what was run at it."""
        self.call += 1
        self.next_base = self.base + max(self.call, *(run.call + 1 for run in runs))
