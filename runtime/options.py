"""EngineOptions: how to run a plan."""

from __future__ import annotations

from dataclasses import dataclass

TRANSPORTS = ("processes", "threads", "emulation")


@dataclass(frozen=True)
class EngineOptions:
    """How to run a plan; None: as the plan says.

    exact: every step exact (the plan's split, no lag). microbatches: an exact step's rows are computed in so many
    parts, one component working on one while another has the next, where they divide evenly; results then differ in
    the last bits from those of the whole batch. correct: in look-ahead, correct the output for what the latent was
    foreseen wrong (docs/lookahead.md). keep_weights: do not let go, until ``close``, of parameters
    that only other processes need and that the files of the denoiser can give back. threads: torch threads per rank
    process (0: torch's own default). compile: run what torch.compile makes of each rank's segments; the first calls
    take minutes, and results differ in the last bits. cuda_graphs: replay segments from CUDA graphs, on GPUs.
    green_contexts: ranks that share a GPU each get an equal share of its multiprocessors (transport "threads").
    record: keep what every rank did and when, for ``timeline``. step_timeout_s:
    longest wait in a step before the engine ends with RankStalled.
    """

    transport: str = "processes"
    exact: bool = False
    microbatches: int = 1
    warmup: int | None = None
    predictor: str | None = None
    mode: str | None = None
    correct: bool = True
    check_finite: bool = False
    keep_weights: bool = False
    compile: bool = False
    cuda_graphs: bool = False
    green_contexts: bool = False
    record: bool = False
    threads: int = 1
    step_timeout_s: float = 300.0
    startup_timeout_s: float = 120.0
