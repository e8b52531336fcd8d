"""Measures what it costs a step (ms) that every message is checked before it is used.

    python -m tools.measure checks [--denoiser sd15-like] [--rounds 10] [--calls 20] [--json]

Two engines of two ranks, one thread each, run the same plan: one as it is, one whose ranks use every message without
checks (tools.measure.unchecked_rank). They take turns, in reversed order in every other round; the figure of a round
is the mean time of an async call. Printed are the medians and their ratio; the median and the quartiles of the rounds'
own ratios, which other work on the machine disturbs less; and the time that the checks of the first engine's driver
take themselves.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch

from partitioner.plan.plan import Plan
from partitioner.planning.compile import compile
from partitioner.planning.options import PlanOptions
from runtime.engine import Engine
from runtime.options import EngineOptions
from runtime.ranks.launch import LocalLauncher
from tools.command import command
from tools.denoisers import DENOISERS
from tools.measure.unchecked_rank import skip_checks

_CHECKS = ("check_header", "check_sent", "_stray")


def start(module: torch.nn.Module, plan: Plan, *, checked: bool) -> Engine:
    """An engine as it is, or one whose ranks do not check messages."""
    options = EngineOptions(step_timeout_s=600)
    if checked:
        return Engine(module, plan, options)
    with mock.patch("runtime.ranks.start.LocalLauncher", return_value=LocalLauncher("tools.measure.unchecked_rank")):
        engine = Engine(module, plan, options)
    skip_checks(engine._ranks.workers[0].mailbox)
    return engine


class Stopwatch:
    """Sums the time that a mailbox spends checking messages, without the wait for them."""

    def __init__(self, mailbox: Any) -> None:
        self.seconds = 0.0
        for name in _CHECKS:
            setattr(mailbox, name, self._timed(getattr(mailbox, name)))

    def _timed(self, check: Any) -> Any:
        def timed(*args: Any) -> Any:
            begin = time.perf_counter()
            try:
                return check(*args)
            finally:
                self.seconds += time.perf_counter() - begin

        return timed


def measure(name: str, rounds: int, calls: int) -> dict[str, Any]:
    """Run both engines by turns; times in ms of a call."""
    module, inputs, roles = DENOISERS[name]()
    torch.set_num_threads(1)
    plan = compile(module, inputs, roles, 2, device="cpu", options=PlanOptions(branches=1, mode="async", force=True))
    by_checked: dict[bool, list[float]] = {True: [], False: []}
    with start(module, plan, checked=True) as checked, start(module, plan, checked=False) as unchecked:
        engines = {True: checked, False: unchecked}
        timestep = 1000.0

        def run(engine: Engine, count: int) -> float:
            nonlocal timestep
            begin = time.perf_counter()
            for _ in range(count):
                timestep -= 1e-3  # falls throughout, so that all calls are one trajectory
                engine(**{**inputs, "timestep": torch.full_like(inputs["timestep"], timestep)})
            return (time.perf_counter() - begin) / count * 1e3

        for engine in engines.values():
            run(engine, plan.warmup + 3)
        for number in range(rounds):
            for kind in (True, False) if number % 2 else (False, True):
                by_checked[kind].append(run(engines[kind], calls))
        watch = Stopwatch(checked._ranks.workers[0].mailbox)
        run(checked, calls)
        messages = sum(len(boundary.readers) for boundary in plan.boundaries)
    ratios = [with_checks / without for with_checks, without in zip(*by_checked.values(), strict=True)]
    with_ms, without_ms = (statistics.median(by_checked[kind]) for kind in (True, False))
    quarters = statistics.quantiles(ratios, n=4)
    return {
        "denoiser": name,
        "boundary_tensors": messages,
        "checked_ms": with_ms,
        "unchecked_ms": without_ms,
        "ratio": with_ms / without_ms,
        "ratio_by_round": statistics.median(ratios),
        "ratio_by_round_quartiles": [quarters[0], quarters[-1]],
        "drivers_checks_ms": watch.seconds / calls * 1e3,
    }


@command("tools.measure.checks")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit code 0."""
    made = argparse.ArgumentParser(prog="python -m tools.measure checks", description=__doc__.split("\n")[0])
    made.add_argument("--denoiser", choices=DENOISERS, default="sd15-like")
    made.add_argument("--rounds", type=int, default=10, metavar="N", help="at least 2 (default: 10)")
    made.add_argument("--calls", type=int, default=20, metavar="N", help="per round and engine (default: 20)")
    made.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    options = made.parse_args(argv)
    if options.rounds < 2 or options.calls < 1:
        made.error("expected at least 2 rounds and 1 call")
    result = measure(options.denoiser, options.rounds, options.calls)
    if options.json:
        print(json.dumps(result, indent=1))
        return 0
    low, high = result["ratio_by_round_quartiles"]
    print(
        f"{result['denoiser']}, {result['boundary_tensors']} boundary tensors per step\n"
        f"checked {result['checked_ms']:.1f} ms, unchecked {result['unchecked_ms']:.1f} ms per step: "
        f"{result['ratio']:.4f}\n"
        f"by round {result['ratio_by_round']:.4f} (quartiles {low:.4f} to {high:.4f})\n"
        f"the driver's own checks take {result['drivers_checks_ms']:.3f} ms per step"
    )
    return 0
