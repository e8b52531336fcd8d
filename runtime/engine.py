"""Engine: starts the ranks of a plan, drives them through every denoiser call, and ends them.

How one call goes is said in runtime.driver.denoiser_driver. An engine may run several denoisers of a pipeline by a plan
each; all have the same ranks, which hold their share of every one.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from partitioner.plan.plan import Plan
from partitioner.plan.timeline import Timeline
from runtime.devices.memory import give_back
from runtime.driver.callers import caller_of
from runtime.driver.denoiser_driver import DenoiserDriver, Shared
from runtime.errors import EngineClosed, InputError, OtherDenoiser
from runtime.options import EngineOptions
from runtime.ranks.base import DenoiserRanks
from runtime.ranks.start import start_ranks
from runtime.stats import Stats
from runtime.torchrun import join
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


class EngineCalls:
    """Calls of one of an engine's denoisers: call it like the denoiser, it returns the denoiser's output as a tuple."""

    def __init__(self, engine: Engine, driver: DenoiserDriver) -> None:
        self._engine = engine
        self._driver = driver

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Make one denoiser call; see Engine."""
        return self._engine._call(self._driver, args, kwargs)

    def in_context(self, name: str) -> str:
        """Have calls of this thread or asyncio task from here on belong to the cache context ``name``.

        Args:
            name: "" is the default one.

        Returns:
            The name of the context that calls belonged to before.
        """
        before = self._driver.context_name.get()
        self._driver.context_name.set(name)
        return before


class Engine:
    """Runs a denoiser by a plan: call it like the denoiser, it returns the denoiser's output as a tuple.

    Use it as a context manager, or call ``close``.

    Attributes:
        plan: of the denoiser.
        options: how it is run.
        others: calls of the other denoisers, by name.

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
            InputError: the options name no transport, or ask for what the devices cannot do.
            StartupError: a rank did not start.
        """
        self.plan = plan
        self.options = options or EngineOptions()
        if self.options.transport == "processes":
            join(self.options.startup_timeout_s)
        self._scheduler = scheduler
        self._recorded_calls: deque[tuple[float, float]] = deque(maxlen=MOST_CALLS)
        self._closed = False
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        plans = [plan, *(other.plan for other in (others or {}).values())]
        parts = max(self.options.microbatches_of(each) for each in plans)
        self._shared = Shared(itertools.count(step=1 + parts))
        self._first = self._driver_of(PlannedDenoiser(denoiser, plan, traced))
        self._drivers = [self._first]
        for name, other in (others or {}).items():
            try:
                self._drivers.append(self._driver_of(other))
            except OtherDenoiser as error:
                raise OtherDenoiser(f"{name}: {error}; {name} needs a plan of its own") from error
        self.others = {
            name: EngineCalls(self, driver) for name, driver in zip(others or {}, self._drivers[1:], strict=True)
        }
        self.in_context = EngineCalls(self, self._first).in_context
        give_back()  # what tracing took
        self._ranks = start_ranks(
            [driver.plan for driver in self._drivers],
            self.options,
            devices or ["cpu"] * plan.ranks,
            [driver.held_on for driver in self._drivers],
        )
        for number, driver in enumerate(self._drivers):
            driver.attach(DenoiserRanks(self._ranks, number))
        try:
            with torch.inference_mode(False):  # as in calls
                for driver in self._drivers:
                    self._ranks.stream.call(driver.start)
        except BaseException:
            self.close()
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
            EngineError: a rank failed, stalled or died; the engine has ended.
        """
        return self._call(self._first, args, kwargs)

    def _call(self, driver: DenoiserDriver, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        caller = caller_of(driver.denoiser, self._scheduler)
        with self._lock:  # calls of several threads take turns
            self._check_open()
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
    def stats(self) -> Stats:
        """Calls and their times by mode, why calls were exact, and each rank's bytes, waits and memory.

        Raises:
            EngineClosed: the engine was closed, or has failed.
        """
        with self._lock:
            self._check_open()
            for driver in self._drivers:
                driver.generations.tell()
            return self._shared.times.stats(tuple(self._ranks.reports()), self._first.generations.passed_by)

    def timeline(self) -> Timeline:
        """What every rank has done and when, for engines with ``record``; see partitioner.plan.timeline.

        Raises:
            EngineClosed: the engine was closed, or has failed.
        """
        reports = self.stats.ranks
        return assemble({rank: report.marks for rank, report in enumerate(reports)}, list(self._recorded_calls))

    def close(self) -> None:
        """End the ranks and give the denoiser its parameters back; nothing is left running. May be called again.

        Raises:
            EngineError: a file that held parameters of the denoiser was written to, and the ranks that have them, too,
                have failed. All others are given back before that.
        """
        with self._lock, ExitStack() as stack:
            for driver in self._drivers:
                stack.callback(driver.restore)
            stack.callback(self._end)
            if not self._closed:
                for driver in self._drivers:
                    stack.callback(driver.end)

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
