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
from dataclasses import dataclass, field
from typing import Any

import torch

from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Role
from partitioner.plan.schedule import ComponentRun, Schedule
from runtime.driver.call_arguments import Tensors
from runtime.driver.latents_ahead import LatentsAhead, foreseeable
from runtime.driver.noise_schedule import NoiseSchedule
from runtime.driver.outputs_beside import OutputsBeside, outputs_by_latent
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
    _known: LatentsAhead | None = None  # in look-ahead
    _begun: set[tuple[int, int]] = field(default_factory=set)  # (context, component) that have run in it
    _passed: int = 0  # calls of the noise schedule before call 0

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
    def reads_past(self) -> bool:
        """Whether the next call is to read messages of calls before it."""
        return self.is_lagged and not self.schedule.is_exact(self.call)

    @property
    def ahead(self) -> int | None:
        """In look-ahead the first step that is not exact; None in other modes."""
        return self.base + self.schedule.warmup if self.schedule.mode == "lookahead" else None

    @property
    def is_new(self) -> bool:
        """Whether the present call is the first that is known of; one that the guard has run exactly is not."""
        return self._call_of_schedule == 0

    @property
    def _call_of_schedule(self) -> int:
        """The present call, counted as those of the noise schedule."""
        return self._passed + self.call

    def expects(self, timestep: float) -> bool:
        """Whether the next call may pass this timestep: look-ahead has begun calls with those that it expects."""
        known = self._known
        return known is None or known.noise_schedule.timesteps.expects(self._call_of_schedule, timestep)

    def start(self, graph: TracedGraph, tensors: Tensors, timestep: float | None, scheduler: Any) -> None:
        """Take the inputs of the first call: look-ahead where later ones can be foreseen; else exact, without a guard
        async.

        Args:
            graph: of the calls.
            tensors: the call's inputs by path.
            timestep: that it passes; None where it has none.
            scheduler: that makes the latents; None where there is none.
        """
        mode = self.run_mode.mode
        if mode == "lookahead" and self.run_mode.components > 1:
            guarded = self.run_mode.quality is not None
            found = foreseeable(graph, tensors, timestep, scheduler, guarded=guarded)
            if isinstance(found, NoiseSchedule):
                latents = [item.name for item in graph.inputs if item.role is Role.LATENT]
                self._look_ahead(found, latents, tensors, self.run_mode.warmup)
                return
            mode = self._instead(found)
        self._schedule_from_here(mode, self.run_mode.warmup)

    def take(self, tensors: Tensors) -> None:
        """Take the inputs of the next call."""
        known = self._known
        if known is None:
            return
        known.take(tensors)
        if self.mode_now != "lookahead":
            return
        refused, jumped = known.refuses(self._call_of_schedule)
        if not refused:
            return
        self.cause = GUARDED if known.is_guarded else ASTRAY
        if jumped:  # the present call and the next are exact, and the latents before are forgotten
            self._look_ahead(known.noise_schedule.after(self._call_of_schedule), known.names, tensors, 2)
        else:  # the present call is exact, and fills the pipe anew with what is predicted now
            self._passed = self._call_of_schedule
            known.refresh()
            self._schedule_from_here("lookahead", 1)

    def _look_ahead(self, noise_schedule: NoiseSchedule, latents: Iterable[str], tensors: Tensors, warmup: int) -> None:
        """Begin with the present call, whose inputs these are. noise_schedule: of the calls from this one on."""
        mode = self.run_mode
        self._known = LatentsAhead(noise_schedule, latents, mode.components - 1, mode.quality, self.beside, self.spent)
        self._passed = 0
        self._schedule_from_here("lookahead", max(warmup, 2))  # (2)
        self._known.begin(tensors)

    def _schedule_from_here(self, mode: str, warmup: int) -> None:
        """Have the present call be call 0 of a schedule. warmup: exact calls that it begins with."""
        components = self.run_mode.components
        self.call, self.base = 0, self.next_base
        self._unannounced = [[[] for _ in range(components)] for _ in range(components)]
        self._begun.clear()
        calls, finish = None, 0
        if self._known is not None:
            noise_schedule = self._known.noise_schedule
            calls, finish = noise_schedule.calls - self._passed, noise_schedule.finish
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
        assert self._known is not None, "only look-ahead runs later calls"
        return self._known.inputs_at(self._passed + call, self._call_of_schedule, graph, tensors, read)

    def correct(self, outputs: Sequence[Any]) -> list[Any]:
        """This call's outputs, corrected to first order for the error of the latents that look-ahead predicted."""
        if self._known is None:
            return list(outputs)
        is_exact = self.mode_now == "exact"
        return self._known.correct(
            outputs, self._call_of_schedule, is_exact=is_exact, is_passed_on=self.run_mode.correct
        )

    def done(self, runs: Sequence[ComponentRun]) -> None:
        """End the present call. runs: what was run at it."""
        self.call += 1
        self.next_base = self.base + max(self.call, *(run.call + 1 for run in runs))
