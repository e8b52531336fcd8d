"""Engine: starts the ranks of a plan, drives them through every denoiser call, and ends them.

How one call goes, and which module does what:

    1. arguments are read and checked against the plan        runtime.driver.call_arguments
    2. what was done to the denoiser meanwhile is noticed     runtime.driver.denoiser_changes
    3. the graph of such calls is found, or traced            runtime.driver.traced_graphs
    4. the ranks are given what they lack of it               runtime.driver.distribution
    5. the trajectory that the call belongs to is found       runtime.driver.streams
    6. it says which component runs which call                runtime.driver.trajectory
    7. commands and inputs go out, results come back          runtime.driver.dispatch
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from partitioner.graph.stateless import listed
from partitioner.plan.plan import Plan
from partitioner.plan.timeline import Timeline
from runtime.devices.memory import give_back
from runtime.driver.call_arguments import CallForm, CallReader, Tensors
from runtime.driver.callers import Caller, caller_of
from runtime.driver.denoiser_changes import TAKEN_OVER, DenoiserChanges
from runtime.driver.dispatch import Dispatcher
from runtime.driver.distribution import Distribution
from runtime.driver.streams import DenoiserCall, Streams
from runtime.driver.traced_graphs import BuiltGraph, TracedGraphs
from runtime.driver.trajectory import RunMode
from runtime.errors import EngineClosed, InputError
from runtime.options import EngineOptions
from runtime.ranks.start import start_ranks
from runtime.stats import CallTimes, Stats
from runtime.torchrun import join
from runtime.transport.weights import Weights
from runtime.worker.microbatches import can_join
from runtime.worker.recording import Recorder, assemble

logger = logging.getLogger("runtime")


class Engine:
    """Runs a denoiser by a plan: call it like the denoiser, it returns the denoiser's output as a tuple.

    Use it as a context manager, or call ``close``.

    >>> import torch
    >>> from partitioner import compile
    >>> denoiser = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.SiLU(), torch.nn.Linear(8, 8)).eval()
    >>> latent = torch.ones(1, 8)
    >>> plan = compile(denoiser, {"input": latent}, {"input": "latent"}, devices=1)
    >>> with Engine(denoiser, plan, EngineOptions(transport="emulation")) as engine, torch.no_grad():
    ...     same = torch.equal(engine(latent)[0], denoiser(latent))
    ...     same, engine.stats.exact_steps
    (True, 1)
    """

    def __init__(
        self,
        denoiser: nn.Module,
        plan: Plan,
        options: EngineOptions | None = None,
        *,
        devices: Sequence[str] | None = None,
        scheduler: Callable[[], Any] | None = None,
        traced: Callable[[], nn.Module] | None = None,
    ) -> None:
        """Trace the denoiser, start the ranks and give each its part.

        Args:
            denoiser: the module that the plan was made for, in evaluation mode.
            plan: which node is on which component, and how to run it.
            options: see EngineOptions.
            devices: rank -> device, such as "cuda:0"; default: all on cpu.
            scheduler: gives the diffusers scheduler of a loop of your own, from which the start of a trajectory and its
                noise schedule are read; a pipeline that makes a call has its own. Without any, timesteps and latents
                tell trajectories apart, and a look-ahead plan runs async.
            traced: gives the module to trace in the denoiser's place, where it is to be traced without something that
                runs anyway. Default: the denoiser.

        Raises:
            PlanMismatch: the plan does not fit the denoiser or the devices; nothing was started.
            InputError: the options name no transport, or ask for what the devices cannot do.
            StartupError: a rank did not start.
        """
        self.plan = plan
        self.options = options or EngineOptions()
        if self.options.transport == "processes":
            join(self.options.startup_timeout_s)
        self._denoiser = denoiser
        self._scheduler = scheduler
        self._context_name: ContextVar[str] = ContextVar("cache_context", default="")  # of each thread or task
        self._times = CallTimes()
        self._recorded_calls: list[tuple[float, float]] = []
        self._closed = False
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        self._streams = Streams(_run_mode(plan, self.options), plan.branches, self.options.microbatches)
        self._calls = CallReader(denoiser, plan)
        self._weights = Weights(denoiser)
        self._graphs = TracedGraphs(denoiser, plan, self._calls, traced)
        planned = self._graphs.planned()
        give_back()  # what tracing took
        held = next(denoiser.parameters(), None)
        self._ranks = start_ranks(
            plan, self.options, devices or ["cpu"] * plan.ranks, str(held.device) if held is not None else None
        )
        self._distribution = Distribution(plan, self.options, self._ranks, self._weights)
        self._dispatcher = Dispatcher(plan, self._ranks, self._calls, self._distribution)
        try:
            if planned is not None:
                self._ranks.stream.call(lambda: self._distribution.give(planned))
                self._distribution.release()
            self._changes = DenoiserChanges(denoiser, TAKEN_OVER if traced is not None else frozenset())
        except BaseException:
            self.close()
            raise

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Make one denoiser call.

        Args:
            args: as the denoiser's own.
            kwargs: as the denoiser's own.

        Returns:
            What the denoiser returns with return_dict=False, on the device of the first tensor argument.

        Raises:
            InputError: the plan does not fit these arguments; nothing was sent, and the engine stays usable.
            EngineClosed: the engine was closed, or has failed.
            EngineError: a rank failed, stalled or died; the engine has ended.
        """
        caller = caller_of(self._denoiser, self._scheduler)
        with self._lock:  # calls of several threads take turns
            self._check_open()
            tensors, form = self._calls.read(args, kwargs)
            try:
                with torch.no_grad():
                    return self._ranks.stream.call(lambda: self._call(caller, tensors, form))
            except InputError:
                raise
            except BaseException as error:  # also an interrupt: ranks may be halfway, so nothing can go on
                self._failure = error
                self._end()
                raise

    def in_context(self, name: str) -> str:
        """Have calls of this thread or asyncio task from here on belong to the cache context ``name``.

        Args:
            name: "" is the default one.

        Returns:
            The name of the context that calls belonged to before.
        """
        before = self._context_name.get()
        self._context_name.set(name)
        return before

    def pass_by(self, name: str) -> None:
        """Count a call that went to another denoiser of the pipeline, which no plan covers. name: what holds it."""
        self._streams.generations.passed_by[name] += 1

    def _call(self, caller: Caller, tensors: Tensors, form: CallForm) -> tuple[Any, ...]:
        started = Recorder.now()
        home = next(iter(tensors.values())).device
        tensors = {path: tensor.to(self._ranks.worker.device) for path, tensor in tensors.items()}
        self._distribution.recover()  # first: whoever looks for changes reads parameters
        self._follow_changes(thorough=False)
        branches = self._calls.halves(tensors)
        while True:
            built = self._graph_of(branches[0], form)
            part = self._graph_of_part(built, branches[0], form)
            call = DenoiserCall(caller, self._context_name.get(), built.graph, len(branches), tensors)
            stream = self._streams.of(call)
            if stream.trajectory.call > 0 or not self._follow_changes(thorough=True):
                break
            self._streams.end_all()  # the call's own, which has begun with the former graph, too
        trajectory = stream.trajectory
        mode, reason = trajectory.mode_now, trajectory.reason
        begin = time.perf_counter()
        results = self._dispatcher.run(trajectory, tensors, built, part, self.options.microbatches)
        self._times.add(mode, time.perf_counter() - begin, reason)
        self._streams.done(stream, call, results[0], reason)
        for contexts, next_step in self._streams.ended():
            self._distribution.forget(contexts, next_step)
        if self.options.record:
            self._recorded_calls.append((started, Recorder.now()))
        return built.graph.output([item.to(home) if isinstance(item, torch.Tensor) else item for item in results])

    def _follow_changes(self, *, thorough: bool) -> bool:
        """Notice what was done to the denoiser since the last call, and have this and later calls follow it.

        thorough: see DenoiserChanges.found. True if there was something; all graphs are others then.
        """
        change = self._changes.found(thorough=thorough)
        if change is None:
            return False
        if change.differences:
            logger.info("the denoiser was changed, and is traced again: %s", listed(change.differences))
            self._graphs.forget()
        else:
            self._graphs.renew()
        if change.written or any(difference.is_part for difference in change.differences):
            self._outdate(change.written)  # otherwise if it shows in the graph
        return True

    def _outdate(self, written: Sequence[torch.Tensor]) -> None:
        self._graphs.outdate()
        self._distribution.outdate(written)
        self._streams.end_all()

    def _graph_of(self, tensors: Tensors, form: CallForm) -> BuiltGraph:
        """The graph of such calls, which every rank has."""
        built = self._graphs.graph_of(tensors, form)
        first = not self._distribution.given
        if built.changed and not self._distribution.has(built):
            self._outdate(())
        if self._distribution.give(built):
            if first:
                self._distribution.release()
            self._changes.settle()
        return built

    def _graph_of_part(self, whole: BuiltGraph, tensors: Tensors, form: CallForm) -> BuiltGraph | None:
        """The graph of a micro-batch of such rows; None where the rows, or the boundary tensors, cannot be split."""
        parts = self._calls.parts(tensors, self.options.microbatches)
        if len(parts) == 1:
            return None
        part = self._graph_of(parts[0], form)
        return part if can_join(whole.specs[0].wires, part.specs[0].wires, len(parts)) else None

    @property
    def stats(self) -> Stats:
        """Calls and their times by mode, why calls were exact, and each rank's bytes, waits and memory.

        Raises:
            EngineClosed: the engine was closed, or has failed.
        """
        with self._lock:
            self._check_open()
            self._streams.generations.tell()
            return self._times.stats(tuple(self._ranks.reports()), self._streams.generations.passed_by)

    def timeline(self) -> Timeline:
        """What every rank has done and when, for engines with ``record``; see partitioner.plan.timeline.

        Raises:
            EngineClosed: the engine was closed, or has failed.
        """
        reports = self.stats.ranks
        return assemble({rank: report.marks for rank, report in enumerate(reports)}, self._recorded_calls)

    def close(self) -> None:
        """End the ranks and give the denoiser its parameters back; nothing is left running. May be called again.

        Raises:
            EngineError: a file that held parameters of the denoiser was written to, and the ranks that have them, too,
                have failed. All others are given back before that.
        """
        with self._lock:
            try:
                if not self._closed:
                    self._streams.generations.end_all()
                    self._distribution.recover()
            finally:
                self._end()
                self._weights.restore()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosed("the engine is closed; start another one") from self._failure

    def _end(self) -> None:
        self._closed = True
        self._ranks.close()  # every time: the last one may have been interrupted

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _run_mode(plan: Plan, options: EngineOptions) -> RunMode:
    """What the options ask for, else what the plan says."""
    return RunMode(
        components=plan.components,
        mode="exact" if options.exact else (options.mode or plan.mode),
        warmup=options.warmup or plan.warmup,
        periods=plan.periods,
        correct=options.correct,
    )
