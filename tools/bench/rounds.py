"""BenchRounds: in each round everything that is compared runs once, one after the other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from partitioner.plan.plan import Plan
from runtime.engine import Engine
from runtime.options import EngineOptions
from tools.bench.asyncdiff_policy import AsyncDiffPolicy
from tools.bench.denoiser_calls import CallArguments, DenoiserCalls
from tools.bench.policy_ranks import PolicyRanks, PolicyRun
from tools.bench.settings import RANKS, BenchSettings

FEWER = 5  # one call without lag for every so many of a trajectory: they are slower and all alike


@dataclass
class RoundTimes:
    """What was measured of one of the compared, by round.

    Attributes:
        call_ms: mean time of a call.
        step_ms: mean time of a call after the warm-up.
        bytes_per_call: sent by all ranks together.
        communication_share: of a call's time, what the rank that sends longest spends sending.
        wait_share: of a call's time, what the rank that waits longest spends waiting for messages.
    """

    call_ms: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    bytes_per_call: list[float] = field(default_factory=list)
    communication_share: list[float] = field(default_factory=list)
    wait_share: list[float] = field(default_factory=list)

    @property
    def median_ms(self) -> float:
        return statistics.median(self.call_ms)


class BenchRounds:
    """The engines and the ranks of AsyncDiff's policy that are measured; they run until ``stack`` is closed."""

    def __init__(
        self,
        stack: ExitStack,
        denoiser: nn.Module,
        trajectory: DenoiserCalls,
        plans: Mapping[str, Plan],
        policy: AsyncDiffPolicy,
        settings: BenchSettings,
    ) -> None:
        """Start everything.

        Args:
            stack: what is started is closed with it.
            denoiser: on the CPU.
            trajectory: the calls that are timed.
            plans: of "async" and "lookahead", and of "multirate" if that is measured too.
            policy: AsyncDiff's split.
            settings: warm-up and micro-batches.
        """
        self._denoiser, self._trajectory, self._warmup = denoiser, trajectory, settings.warmup
        scheduler = trajectory.scheduler
        # first, since these ranks get a copy of the denoiser as it is now
        self._policy = stack.enter_context(PolicyRanks(denoiser, policy))
        lagged = EngineOptions(warmup=settings.warmup, quality="off")
        exact = EngineOptions(exact=True, microbatches=settings.microbatches)
        lagged_ways = [
            *((name, plan, lagged) for name, plan in plans.items()),
            ("async_on_chain", plans["lookahead"], replace(lagged, mode="async")),
        ]
        self._engines = {
            name: stack.enter_context(Engine(denoiser, plan, options, scheduler=lambda: scheduler))
            for name, plan, options in [*lagged_ways, ("exact", plans["async"], exact)]
        }
        self._lagged = tuple(name for name, _, _ in lagged_ways)
        others = ("sequential", "sequential_2_threads", "policy")
        self.samples = {name: RoundTimes() for name in (*others, *self._engines)}
        self.policy_resident_bytes: tuple[int, ...] = ()

    def run_round(self, backwards: bool) -> None:
        """Measure every one once. Rounds in turned order make a machine that slows down favour none."""
        turns: list[Callable[[], None]] = [
            lambda: self._run_denoiser("sequential", 1),
            *(partial(self._run_trajectory, name) for name in self._lagged),
            self._run_policy,
            lambda: self._run_engine("exact", self._few()),
            lambda: self._run_denoiser("sequential_2_threads", 2),
        ]
        for turn in reversed(turns) if backwards else turns:
            turn()

    def _few(self) -> list[CallArguments]:
        return self._trajectory.start()[::FEWER]

    def _run_denoiser(self, name: str, threads: int) -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            _times_ms(self._denoiser, self._few()[:1])  # a change of threads costs the first call
            self.samples[name].call_ms.append(statistics.mean(_times_ms(self._denoiser, self._few())))
        finally:
            torch.set_num_threads(before)

    def _run_trajectory(self, name: str) -> None:
        self._run_engine(name, self._trajectory.start())

    def _run_engine(self, name: str, calls: Sequence[CallArguments]) -> None:
        engine, samples = self._engines[name], self.samples[name]
        before = engine.stats.ranks
        times = _times_ms(engine, calls)
        after = engine.stats.ranks
        samples.call_ms.append(statistics.mean(times))
        # look-ahead needs as many exact calls as it has components
        samples.step_ms.append(statistics.mean(times[max(self._warmup, RANKS) :] or times))
        seconds = sum(times) / 1e3
        pairs = list(zip(before, after, strict=True))
        samples.bytes_per_call.append(sum(a.sent_bytes - b.sent_bytes for b, a in pairs) / len(calls))
        samples.communication_share.append(max(a.send_seconds - b.send_seconds for b, a in pairs) / seconds)
        samples.wait_share.append(max(a.wait_seconds - b.wait_seconds for b, a in pairs) / seconds)

    def _run_policy(self) -> None:
        run: PolicyRun = self._policy.run(self._trajectory.start(), self._warmup)
        samples = self.samples["policy"]
        samples.call_ms.append(statistics.mean(run.call_ms))
        samples.communication_share.append(max(run.communication_ms) / sum(run.call_ms))
        samples.bytes_per_call.append(run.sent_bytes[-1])
        self.policy_resident_bytes = run.resident_bytes


def _times_ms(denoise: Callable[..., Any], calls: Sequence[CallArguments]) -> list[float]:
    times = []
    with torch.no_grad():
        for arguments in calls:
            start = time.perf_counter()
            denoise(**arguments)
            times.append(1e3 * (time.perf_counter() - start))
    return times
