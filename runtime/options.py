"""EngineOptions: how to run a plan."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING

from partitioner.limits import (
    LEAST_SECONDS,
    MOST_BATCH,
    MOST_SECONDS,
    MOST_STEPS,
    MOST_THREADS,
    check_one_of,
    check_real,
    check_whole,
)
from partitioner.plan.predictor import PREDICTORS
from partitioner.search.mode import MODES
from runtime.errors import InputError

if TYPE_CHECKING:
    from partitioner.plan.plan import Plan

TRANSPORTS = ("processes", "threads", "emulation")  # what a rank is
QUALITIES: dict[str, float | None] = {"indistinguishable": 40.0, "good": 26.0, "off": None}  # dB
MOST_DECIBELS = 1000.0


@dataclass(frozen=True)
class EngineOptions:
    """How to run a plan. None means: as the plan says.

    Attributes:
        transport: what a rank is: "processes" (a process each), "threads" (threads of this process, which
            ``parallelize`` chooses where ranks share a GPU) or "emulation" (all in the caller's thread, in turn; for
            tests).
        exact: run every step exactly: by the plan's split, but without lag or look-ahead.
        microbatches: compute an exact step's rows in so many parts, so that one component works on one part while
            another has the next; only where the rows divide evenly. Results then differ in the last bits. None: as the
            plan says, and the rows together with ``exact``.
        warmup: how many first steps of a trajectory are exact.
        predictor: what lagged reads are estimated by: "hold", "linear" or "adaptive".
        mode: how steps after the warm-up are run: "lookahead" or "async".
        correct: in look-ahead, correct the output for the error of the predicted latent (docs/concepts/look-ahead.md).
        quality: how near look-ahead's pictures must come to those of the sequential run: a PSNR in dB that hardly a
            picture falls below, "indistinguishable" (40 dB), "good" (26 dB; most are 20 dB and more above it), or
            "off". Calls that would add too much of an error are run exactly (docs/concepts/look-ahead.md).
        check_finite: stop with NonFiniteValue at the first NaN or Inf, naming the node that made it. Slow.
        keep_weights: keep in this process's memory, while the engine runs, the parameters that only other ranks
            need. By default those that one of the denoiser's files holds in the same dtype are views of it until
            ``close``.
        compile: compile each rank's segments by torch.compile. The first calls take minutes, and results differ in
            the last bits.
        cuda_graphs: on GPUs, replay each rank's segments from CUDA graphs where they can be captured: None: so it is;
            True: where a device has no such graphs the engine does not start; False: never.
        green_contexts: give each of the ranks that share a GPU an equal share of its multiprocessors; with transport
            "threads".
        kept_graphs: how many traced graphs of a denoiser are kept at most: one for each size, number of rows and other
            form of a call, with its CUDA graphs and shared memory. Those that were used last stay; a call of another
            form is traced again, in seconds. Those of one call stay in any case.
        kept_trajectories: how many trajectories of a denoiser are kept at most, each with its conditions and lagged
            values: one for every call that a request makes at a step. Those that were used last stay; one that has
            gone and goes on starts anew, with exact calls.
        record: keep what every rank did and when, for ``Engine.timeline``; of the last calls, where a rank has done
            more than 100,000 things (runtime.worker.recording).
        threads: torch threads per rank process; 0: torch's own default. By their number operators of a CPU sum up in
            another order: exact steps have the bits that the unmodified denoiser has with as many.
        step_timeout_s: seconds that a step may wait for other ranks before the engine ends with RankStalled.
        startup_timeout_s: seconds that the ranks may take to start before the engine ends with StartupError.

    Raises:
        InputError: a number is out of range.

    >>> EngineOptions(transport="threads", warmup=4).correct
    True
    """

    transport: str = "processes"
    exact: bool = False
    microbatches: int | None = None
    warmup: int | None = None
    predictor: str | None = None
    mode: str | None = None
    correct: bool = True
    quality: float | str = "good"
    check_finite: bool = False
    keep_weights: bool = False
    compile: bool = False
    cuda_graphs: bool | None = None
    green_contexts: bool = False
    kept_graphs: int = 32
    kept_trajectories: int = 32
    record: bool = False
    threads: int = 1
    step_timeout_s: float = 300.0
    startup_timeout_s: float = 120.0

    def __post_init__(self) -> None:
        check_whole("threads", self.threads, 0, MOST_THREADS, InputError)
        if self.microbatches is not None:
            check_whole("microbatches", self.microbatches, 1, MOST_BATCH, InputError)
        if self.warmup is not None:
            check_whole("warmup", self.warmup, 1, MOST_STEPS, InputError)
        for name in ("kept_graphs", "kept_trajectories"):
            check_whole(name, getattr(self, name), 1, error=InputError)
        for name in ("step_timeout_s", "startup_timeout_s"):
            check_real(name, getattr(self, name), LEAST_SECONDS, MOST_SECONDS, InputError)
        decibels(self.quality)
        check_one_of("transport", self.transport, TRANSPORTS, InputError)
        check_one_of("predictor", self.predictor, (None, *PREDICTORS), InputError)
        check_one_of("mode", self.mode, (None, *MODES), InputError)

    def microbatches_of(self, plan: Plan) -> int:
        """In how many parts the rows of a plan's exact calls are computed."""
        if self.microbatches is not None:
            return self.microbatches
        return 1 if self.exact else plan.microbatches


def decibels(quality: float | str) -> float | None:
    """What ``EngineOptions.quality`` asks for as a PSNR in dB; None where it is off.

    Raises:
        InputError: it is neither a number of dB nor one of QUALITIES.

    >>> decibels("indistinguishable")
    40.0
    """
    if isinstance(quality, str):
        if quality in QUALITIES:
            return QUALITIES[quality]
    elif isinstance(quality, Real) and not isinstance(quality, bool) and 0 < quality <= MOST_DECIBELS:
        return float(quality)
    known = ", ".join(QUALITIES)
    raise InputError(f"quality is {known} or a PSNR in dB above 0 and at most {MOST_DECIBELS:g}; got {quality!r}")
