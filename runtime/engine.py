"""Engine: starts the ranks of a plan, drives them through every denoiser call, and ends them.

How one call goes is said in runtime.driver.denoiser_driver. An engine may run several denoisers of a pipeline by a plan
each; all have the same ranks, which hold their share of every one.
"""

from __future__ import annotations

import itertools
import sys
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from partitioner.graph.alone import works_alone
from partitioner.graph.export import makes_on
from partitioner.plan.plan import Plan
from partitioner.plan.timeline import Timeline
from partitioner.process import interrupts_put_off
from runtime.devices.memory import give_back
from runtime.devices.names import device_names
from runtime.driver.callers import Caller, caller_of
from runtime.driver.denoiser_driver import DenoiserDriver, Shared
from runtime.engine_calls import EngineCalls
from runtime.engine_thrown_away import end_thrown_away
from runtime.errors import EngineClosed, InputError, OtherDenoiser
from runtime.options import EngineOptions
from runtime.ranks.base import DenoiserRanks
from runtime.ranks.start import start_ranks
from runtime.stats import Stats
from runtime.torchrun import join
from runtime.turns import Turns, at_engine_work, later
from runtime.worker.recording import MOST_CALLS, Recorder, assemble


@dataclass(frozen=True, eq=False)
class PlannedDenoiser:
    """A denoiser and how it is to be run.

    Attributes:
        denoiser: the module that the plan was made for, in evaluation mode.
        plan: which node is on which component, and how to run it.
        traced: gives the module to trace in the denoiser's place, where it is to be traced without something that runs
            anyway. None: the denoiser.
    """

    denoiser: nn.Module
    plan: Plan
    traced: Callable[[], nn.Module] | None = None


class Engine:
    """Runs a denoiser by a plan: call it like the denoiser, it returns the denoiser's output as a tuple.

    Use it as a context manager, or call ``close``. One that is thrown away without ends all the same, with a
    ResourceWarning.

    Threads take turns, each for a call. What a signal handler, a hook or a finalizer asks in the middle of a thread's
    own call is refused with EngineBusy, but for ``close``; whatever a process that was forked from the engine's asks,
    with OtherProcess.

    Attributes:
        plan: of the denoiser.
        options: how it is run.

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
        others: Mapping[str, PlannedDenoiser] | None = None,
    ) -> None:
        """Trace the denoiser, start the ranks and give each its part.

        Args:
            denoiser: the module that the plan was made for, in evaluation mode.
            plan: which node is on which component, and how to run it.
            options: see EngineOptions.
            devices: rank -> device, such as "cuda:0"; default: all on cpu.
            scheduler: gives the diffusers scheduler of a loop of your own, from which the start of a trajectory and its
                noise schedule are read; a pipeline that makes a call has its own. Without any, timesteps and latents
                tell trajectories apart, and a look-ahead plan runs exactly (with ``quality="off"`` async).
            traced: gives the module to trace in the denoiser's place, where it is to be traced without something that
                runs anyway. Default: the denoiser.
            others: further denoisers that the same ranks are to run, by name; their plans have as many ranks.

        Raises:
            PlanMismatch: a plan does not fit its denoiser or the devices; nothing was started.
            InputError: the options ask for what the devices cannot do, or one is no device.
            StartupError: a rank did not start.
        """
        self.plan = plan
        self.options = options or EngineOptions()
        names = ["cpu"] * plan.ranks if devices is None else device_names(devices)
        if self.options.transport == "processes":
            join(self.options.startup_timeout_s)
        self._scheduler = scheduler
        self._recorded_calls: deque[tuple[float, float]] = deque(maxlen=MOST_CALLS)
        self._closing = self._closed = False
        self._failure: BaseException | None = None
        self._turns = Turns(self.options.startup_timeout_s + self.options.step_timeout_s)
        plans = [plan, *(other.plan for other in (others or {}).values())]
        parts = max(self.options.microbatches_of(each) for each in plans)
        self._shared = Shared(itertools.count(step=1 + parts))
        with makes_on("cpu"):
            self._first = self._driver_of(PlannedDenoiser(denoiser, plan, traced))
            self._drivers = [self._first]
            for name, other in (others or {}).items():
                try:
                    self._drivers.append(self._driver_of(other))
                except OtherDenoiser as error:
                    raise OtherDenoiser(f"{name}: {error}; {name} needs a plan of its own") from error
        self._names = tuple(others or {})
        give_back()  # what tracing took
        self._turns.take("starting an engine", lambda: self._start(names))

    def _start(self, devices: Sequence[str]) -> None:
        """Start the ranks, and give each its part."""
        self._ranks = start_ranks(
            [driver.plan for driver in self._drivers],
            self.options,
            devices,
            [driver.held_on for driver in self._drivers],
        )
        for number, driver in enumerate(self._drivers):
            driver.attach(DenoiserRanks(self._ranks, number))
        self._dropped = weakref.finalize(
            self, end_thrown_away, self._turns, self._ranks, [driver.give_back for driver in self._drivers]
        )
        self._dropped.atexit = False  # the program's end ends the ranks, and needs nothing else
        try:
            with torch.inference_mode(False), makes_on("cpu"):  # as in calls
                for driver in self._drivers:
                    self._ranks.stream.call(driver.start)
        except BaseException:
            self._close()
            raise

    def _driver_of(self, planned: PlannedDenoiser) -> DenoiserDriver:
        return DenoiserDriver(planned.denoiser, planned.plan, self.options, self._shared, planned.traced)

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
            EngineBusy: this thread is in the middle of a call, or another's does not end.
            OtherProcess: this process was forked from the engine's.
            EngineError: a rank failed, stalled or died; the engine has ended.
        """
        return self._call(self._first, args, kwargs)

    @property
    def others(self) -> dict[str, EngineCalls]:
        """Calls of the other denoisers, by name."""
        drivers = zip(self._names, self._drivers[1:], strict=True)
        return {name: EngineCalls(driver, partial(self._call, driver)) for name, driver in drivers}

    def in_context(self, name: str) -> str:
        """Have calls of this thread or asyncio task from here on belong to a cache context; see EngineCalls."""
        return self._first.in_context(name)

    def _call(self, driver: DenoiserDriver, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        caller = caller_of(driver.denoiser, self._scheduler)
        return self._turns.take("a call of an engine", lambda: self._make_call(driver, caller, args, kwargs))

    def _make_call(
        self, driver: DenoiserDriver, caller: Caller, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, ...]:
        self._check_open()
        with makes_on("cpu"):
            tensors, form = driver.read(args, kwargs)
            started = Recorder.now()
            self._ranks.follow_settings()
            try:
                # ranks see ordinary tensors only, in whatever mode the caller is: what is compiled for them fits always
                with torch.inference_mode(False), torch.no_grad():
                    results = self._ranks.stream.call(lambda: driver.call(caller, tensors, form))
            except InputError:
                raise
            except BaseException as error:  # also an interrupt: ranks may be halfway, so nothing can go on
                self._failure = error
                self._end()
                raise
        if self.options.record:
            self._recorded_calls.append((started, Recorder.now()))
        return results

    def pass_by(self, name: str) -> None:
        """Count a call that went to another denoiser of the pipeline, which no plan covers. name: what holds it."""
        self._first.generations.passed_by[name] += 1

    @property
    def was_called(self) -> bool:
        """Whether it has made a call."""
        return self._shared.times.steps > 0

    @property
    def stats(self) -> Stats:
        """Calls and their times by mode, why calls were exact, and each rank's bytes, waits and memory.

        Raises:
            EngineClosed: the engine was closed, or has failed.
            EngineBusy, OtherProcess: as for a call.
        """
        return self._turns.take("engine.stats", self._stats)

    def _stats(self) -> Stats:
        self._check_open()
        for driver in self._drivers:
            driver.generations.tell()
        return self._shared.times.stats(tuple(self._ranks.reports()), self._first.generations.passed_by)

    def timeline(self) -> Timeline:
        """What every rank has done and when, for engines with ``record``; see partitioner.plan.timeline.

        Raises:
            EngineClosed: the engine was closed, or has failed.
            EngineBusy, OtherProcess: as for a call.
        """
        reports = self.stats.ranks
        return assemble({rank: report.marks for rank, report in enumerate(reports)}, list(self._recorded_calls))

    def close(self) -> None:
        """End the ranks and give the denoiser its parameters back; nothing is left running. May be called again.

        In the middle of a call or a trace, as by a signal handler or a finalizer, it returns at once, and a thread
        closes the engine when that has ended, after which there is no call. Ctrl-C and other signals wait until it is
        closed.

        Raises:
            EngineError: a file that held parameters of the denoiser was written to, and the ranks that have them, too,
                have failed. All others are given back before that.
            EngineBusy: a call of another thread does not end.
            OtherProcess: this process was forked from the engine's, which goes on.
        """
        self._turns.check_process("engine.close()")
        if sys.is_finalizing():
            return  # the program's end has ended the ranks, needs no parameters, and can do little of this any more
        if at_engine_work() or works_alone():
            self._closing = True
            later(self.close, "close engine")
            return
        self._turns.take("engine.close()", self._close)

    def _close(self) -> None:
        with interrupts_put_off(), ExitStack() as stack:
            stack.callback(self._dropped.detach)
            for driver in self._drivers:
                stack.callback(driver.restore)
            stack.callback(self._end)
            if not self._closed:
                for driver in self._drivers:
                    stack.callback(driver.end)

    def _check_open(self) -> None:
        if self._closed or self._closing:
            raise EngineClosed("the engine is closed; start another one") from self._failure

    def _end(self) -> None:
        self._closed = True
        with interrupts_put_off():
            self._ranks.close()

    def __reduce__(self) -> Any:
        raise TypeError(
            "an engine can be neither copied nor sent to another process, as an argument of a spawned one: start one "
            "there, from the denoiser and the plan"
        )

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._turns.is_owner:  # a process that was forked in the block may leave it
            self.close()
