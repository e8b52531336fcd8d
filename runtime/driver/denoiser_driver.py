"""DenoiserDriver: drives an engine's ranks through every call of one denoiser.

How one call goes, and which module does what:

    1. arguments are read and checked against the plan        runtime.driver.call_arguments
    2. the graphs of such calls are found                     runtime.driver.graphs_of_calls
       what is new is traced                                  runtime.driver.traced_graphs
    3. the ranks are given what they lack of them             runtime.driver.distribution
    4. the trajectory that the call belongs to is found       runtime.driver.streams
       if it was foreseen, it was begun earlier               runtime.driver.foresight
    5. it says which component runs which call                runtime.driver.trajectory
    6. commands and inputs go out, rank 0 does its own part   runtime.driver.dispatch
    7. what was done to the denoiser meanwhile is noticed     runtime.driver.denoiser_changes
       if anything was, the call is made again from 2 on      runtime.driver.change_follower
    8. results come back                                      runtime.driver.dispatch

Where 2 to 4 find anything new, and wherever changes are likely, 7 comes before 2: see change_follower.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from partitioner.graph.alone import Parts, alone_with, parts_of
from partitioner.plan.plan import Plan
from runtime.driver.call_arguments import CallForm, CallReader, Tensors
from runtime.driver.callers import Caller
from runtime.driver.change_follower import ChangeFollower, LookFirst
from runtime.driver.denoiser_call import DenoiserCall
from runtime.driver.denoiser_changes import TAKEN_OVER, DenoiserChanges
from runtime.driver.dispatch import Dispatcher
from runtime.driver.distribution import Distribution, undone_text
from runtime.driver.foresight import BegunCall, Foresight
from runtime.driver.generations import Generations
from runtime.driver.graphs_of_calls import GraphsOfCalls
from runtime.driver.shared_rows import SharedRows
from runtime.driver.stream import Stream
from runtime.driver.streams import Streams
from runtime.driver.timestep_reader import TimestepReader
from runtime.driver.traced_graphs import BuiltGraph, CallGraphs, TracedGraphs
from runtime.driver.trajectory import RunMode
from runtime.errors import InputError, WeightsChanged
from runtime.options import EngineOptions, decibels
from runtime.ranks.base import DenoiserRanks
from runtime.stats import CallTimes
from runtime.transport.weights import Weights

_LOGGER = logging.getLogger("runtime")


@dataclass
class Shared:
    """What the drivers of an engine's denoisers have in common: what they number, say and count.

    Attributes:
        tables: the numbers of graphs.
        lists: the numbers of lists of parameters.
        contexts: the numbers of trajectories' contexts; see Streams.
        warned: what the user has been warned of.
        times: the calls of all denoisers.
        generations: those of each denoiser.
    """

    contexts: Iterator[int]
    tables: Iterator[int] = field(default_factory=itertools.count)
    lists: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    warned: set[str] = field(default_factory=set)
    times: CallTimes = field(default_factory=CallTimes)
    generations: list[Generations] = field(default_factory=list)


class DenoiserDriver:
    """Drives the ranks through the calls of one denoiser. Not thread-safe.

    Attributes:
        denoiser: that it stands for.
        plan: of the denoiser.
        context_name: the cache context that calls of the present thread or task belong to.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        plan: Plan,
        options: EngineOptions,
        shared: Shared,
        traced: Callable[[], nn.Module] | None = None,
    ) -> None:
        """Trace the denoiser as the plan's calls need it.

        Args:
            denoiser: the module that the plan was made for, in evaluation mode.
            plan: which node is on which component, and how to run it.
            options: of the engine.
            shared: with the engine's other denoisers.
            traced: gives the module to trace in the denoiser's place; None: itself.

        Raises:
            OtherDenoiser: the plan is not this denoiser's.
        """
        self.denoiser = denoiser
        self.plan = plan
        self.context_name: ContextVar[str] = ContextVar("cache_context", default="")
        self._options = options
        self._shared = shared
        self._ignored = TAKEN_OVER if traced is not None else frozenset()
        self._microbatches = options.microbatches_of(plan)
        self._streams = Streams(
            _run_mode(plan, options),
            plan,
            shared.contexts,
            shared.warned,
            most=options.kept_trajectories,
            microbatches=self._microbatches,
            denoisers=shared.generations,
        )
        self._foresight = Foresight(self._streams, shared.times, shared.warned)
        self.generations = self._streams.generations
        self._calls = CallReader(denoiser, plan)
        self._timesteps = TimestepReader()
        self._graphs = TracedGraphs(
            denoiser, plan, self._calls, shared.tables, most=options.kept_graphs, warned=shared.warned, traced=traced
        )
        self._rows = SharedRows(denoiser, plan, shared.warned)
        self._parts = parts_of(denoiser)  # as it is now: what is added later comes beside them
        self._weights, self._planned = alone_with(self._parts, lambda: (Weights(denoiser), self._graphs.planned()))

    @property
    def held_on(self) -> str | None:
        """The device that holds the denoiser's parameters; None where it has none."""
        held = next(self.denoiser.parameters(), None)
        return str(held.device) if held is not None else None

    def attach(self, ranks: DenoiserRanks) -> None:
        """Drive these ranks, which are given nothing yet."""
        self._ranks = ranks
        self._distribution = Distribution(self.plan, self._options, ranks, self._weights, self._shared.lists)
        self._dispatcher = Dispatcher(self.plan, ranks, self._calls, self._distribution)

    def start(self) -> None:
        """Give the ranks what they need for the plan's calls.

        Raises:
            EngineError: a rank failed.
        """
        alone_with(self._parts, self._start)

    def _start(self) -> None:
        self._changes = DenoiserChanges(self.denoiser, self._ignored, self._weights.marks)
        if self._planned is not None:
            self._distribution.give(self._planned)
            self._distribution.release()
            self._planned = None
            self._changes.settle()
        self._follower = ChangeFollower(
            self._changes,
            self._graphs,
            self._distribution,
            rows=self._rows,
            calls=self._calls,
            streams=self._streams,
            foresight=self._foresight,
        )
        self._graphs_of_calls = GraphsOfCalls(
            self._calls,
            self._graphs,
            rows=self._rows,
            distribution=self._distribution,
            changes=self._changes,
            follower=self._follower,
            microbatches=self._microbatches,
        )

    def in_context(self, name: str) -> str:
        """Have calls of this thread or task from here on belong to another cache context; returns the former's name."""
        before = self.context_name.get()
        self.context_name.set(name)
        return before

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensors, CallForm]:
        """The tensors of a call's arguments, and what else they are.

        Raises:
            InputError: the plan does not fit these arguments.
        """
        return self._calls.read(args, kwargs)

    def call(self, caller: Caller, tensors: Tensors, form: CallForm) -> tuple[Any, ...]:
        """Make one call, on the device stream of rank 0.

        Args:
            caller: who makes it.
            tensors: its inputs by path.
            form: what else its arguments are.

        Returns:
            What the denoiser returns with return_dict=False, on the device of the first tensor argument.
        """
        home = next(iter(tensors.values())).device
        tensors = {path: tensor.to(self._ranks.worker.device) for path, tensor in tensors.items()}
        looks_first = not self._follower.may_look_later
        while (made := self._made(caller, tensors, form, looks_first=looks_first)) is None:
            looks_first = True
        begun, results = made
        output = [item.to(home) if isinstance(item, torch.Tensor) else item for item in results]
        return begun.call.graph.output(output)

    def _made(
        self, caller: Caller, tensors: Tensors, form: CallForm, *, looks_first: bool
    ) -> tuple[BegunCall, tuple[Any, ...]] | None:
        """A call that was made, and its results.

        looks_first: at the denoiser, before ranks begin. None, which it never is then, if that has to be done.
        """
        try:
            found = alone_with(self._parts, lambda: self._find(caller, tensors, form, looks_first))
        except LookFirst:
            return None
        start = time.perf_counter()
        others: list[BegunCall] = []
        if isinstance(found, BegunCall):
            begun = found
        else:
            begun = self._begin(*found)
            if self.plan.streams > 1:
                others = self._foresight.begin_others(*found, self._begin)
        self._dispatcher.run(begun.running, [other.running for other in others], self._look)
        if self._follower.sees and alone_with(self._parts, lambda: self._follower.discards(begun)):
            return None
        results = self._dispatcher.finish(begun.running)
        self._shared.times.add(begun.mode, time.perf_counter() - start, begun.reason)
        self._streams.done(begun.stream, begun.call, results[0], begun.reason)
        self._let_go([begun, *others])
        return begun, results

    def _look(self) -> None:
        if not self._follower.has_looked:
            alone_with(self._parts, self._follower.look)

    def _find(
        self, caller: Caller, tensors: Tensors, form: CallForm, looks_first: bool
    ) -> BegunCall | tuple[DenoiserCall, Stream]:
        """What was begun of a call, where it was foreseen, or the call and its stream, which has taken its inputs."""
        undone = self._distribution.recover()  # first: whoever looks for changes reads parameters
        if undone:
            raise InputError(undone_text(undone))
        self._follower.expect_call()
        if looks_first:
            self._follower.follow(thorough=False)
        number = self._number_of(form.timestep, caller)

        def is_present(graphs: CallGraphs) -> bool:
            return not self._graphs.turns or self._graphs_of_calls.of(tensors, form).branches == graphs.branches

        begun = self._foresight.made(caller, self.context_name.get(), tensors, form, number, is_present)
        found = begun or self._stream_of(caller, tensors, form, number)
        self._follower.placed(found.stream if isinstance(found, BegunCall) else found[1])
        return found

    def _let_go(self, present: Sequence[BegunCall]) -> None:
        """Have ranks forget what is not kept any longer: between calls, and all of them in the order of commands.

        present: calls whose graphs stay, beside those of calls that are foreseen.
        """
        graphs: list[BuiltGraph] = []
        if self._graphs.are_too_many:
            in_use = {table for begun in (*present, *self._foresight.begun) for table in begun.call.graphs.all_tables}
            graphs = self._graphs.let_go(in_use)
            self._streams.let_go([built.table for built in graphs])
        for contexts, next_step in self._streams.ended():
            self._distribution.forget(contexts, next_step)
        if graphs:
            self._rows.let_go([built.graph for built in graphs])
            self._distribution.drop([built.table for built in graphs])

    def _stream_of(
        self, caller: Caller, tensors: Tensors, form: CallForm, number: float | None
    ) -> tuple[DenoiserCall, Stream]:
        """A call that was not foreseen, and its stream, which has taken its inputs."""
        while True:
            graphs = self._graphs_of_calls.of(tensors, form)
            call = DenoiserCall(caller, self.context_name.get(), graphs, tensors, form, number)
            stream = self._streams.of(call, self._follower.require_look)
            if not stream.trajectory.is_new or not self._follower.follow(thorough=True):
                return call, stream
            self._follower.end_trajectories()  # the call's own, which has begun with the former graph, too

    def _begin(self, call: DenoiserCall, stream: Stream) -> BegunCall:
        """Have the ranks begin a call. stream: that has taken its inputs."""
        trajectory = stream.trajectory
        mode, reason = trajectory.mode_now, trajectory.reason
        first_branch = stream.group * self.plan.branches_per_stream
        running = self._dispatcher.begin(trajectory, call.tensors, call.graphs, first_branch)
        return BegunCall(call, stream, running, mode, reason)

    def _number_of(self, timestep: torch.Tensor | float | None, caller: Caller) -> float | None:
        """The timestep of a call as a number; None where it has none."""
        if timestep is None:
            return None
        number = self._timesteps.number(timestep, caller.scheduler() if caller.scheduler is not None else None)
        if self._timesteps.was_wrong or self._foresight.was_wrong:
            self._timesteps.was_wrong = False
            self._follower.end_trajectories()
            _LOGGER.warning(
                "the timestep of the last denoiser call was not the one that the scheduler's step_index names, so that "
                "the call may have been taken for another trajectory's; from here on timesteps are waited for"
            )
        return number

    def end(self) -> None:
        """No more calls will come; say what there is to say, and get back what of the denoiser the ranks alone have.

        Raises:
            WeightsChanged: with that, writes to parameters since the last call are undone.
        """
        self.generations.end_all()
        undone = alone_with(self._parts, lambda: self._distribution.recover(thorough=True))
        if undone:
            raise WeightsChanged(undone_text(undone))

    def restore(self) -> None:
        """Give the denoiser its parameters back; the ranks have ended."""
        self._distribution.let_go()
        self.give_back()

    @property
    def give_back(self) -> Callable[[], None]:
        """Does as ``restore`` does, and keeps neither this nor the denoiser alive."""
        return partial(_restore, self._weights, self._parts)


def _restore(weights: Weights, parts: Parts) -> None:
    alone_with(parts, weights.restore)


def _run_mode(plan: Plan, options: EngineOptions) -> RunMode:
    """What the options ask for, else what the plan says."""
    return RunMode(
        components=plan.components,
        mode="exact" if options.exact else (options.mode or plan.mode),
        warmup=options.warmup or plan.warmup,
        periods=plan.periods,
        correct=options.correct,
        quality=decibels(options.quality),
    )
