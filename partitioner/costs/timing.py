"""Times calls on a CPU or a GPU, in one of three modes, and sorts out samples that something disturbed.

On a CPU one thread runs the calls, and a sample counts where no other thread had the core meanwhile. On a GPU single
operators are too short to be timed one by one: long runs of them are timed between two events.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch

from partitioner.costs.operator_calls import Call
from partitioner.errors import MeasureError, first_line
from partitioner.process import keep_freed_memory
from profiles.cost_profile import SignatureCost

TimingMode = Literal["eager", "cuda_graph", "compiled"]
"""eager: calls that the host makes one after the other. cuda_graph: captured once on a GPU and replayed, so that
kernels alone count. compiled: what torch.compile makes of them."""

MIN_ROUNDS = 5
PRECISION = 0.01  # of the median of whole components or denoisers
MORE_CALLS = 5
GPU_RUN_MS = 2.0  # what one timed run of repeated calls takes at least, well above the resolution of events
GPU_MAX_CALLS = 200  # per run; the driver's queue holds about 1000 launches before the host must wait


def measuring_device(name: str, mode: TimingMode) -> torch.device:
    """The CPU or GPU of that name.

    Args:
        name: "cpu", "cuda" or "cuda:1".
        mode: What is to be measured there.

    Raises:
        MeasureError: It is not there, is neither a CPU nor a GPU, or does not know the mode.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise MeasureError(f"cannot measure on {name!r}; expected cpu, or a GPU such as cuda:0")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MeasureError(f"{name} is not there: torch sees {torch.cuda.device_count()} GPUs; use cpu or a roofline")
    if device.type == "cpu" and mode == "cuda_graph":
        raise MeasureError("mode 'cuda_graph' needs a GPU; measure cpu in mode 'eager'")
    return device if device.type == "cpu" else torch.device("cuda", device.index or 0)


def measure_whole(
    run: Callable[[], Any], device: str = "cpu", *, mode: TimingMode = "eager", calls: int = 5
) -> list[float]:
    """Times in ms of whole calls of a function, one after the other, after two calls that warm up.

    Args:
        run: The function.
        device: The device that it computes on; a CPU with one thread.
        mode: "cuda_graph" captures it once and replays that; "compiled" compiles it once, which may take minutes.
        calls: How many are timed at least.

    Raises:
        MeasureError: As of measuring_device, or the function cannot be captured.

    >>> times = measure_whole(lambda: sum(range(1000)), calls=3)
    >>> len(times) >= 3 and min(times) > 0
    True
    """
    return measure_by_turns([run], device, mode=mode, calls=calls)[0]


def measure_by_turns(
    runs: Sequence[Callable[[], Any]], device: str = "cpu", *, mode: TimingMode = "eager", calls: int = 5
) -> list[list[float]]:
    """Times in ms of several functions, as measure_whole gives them.

    On a CPU they take turns, so that all become slower where the machine does, and they go on until the median of each
    is known to 1 %, for at most ``MORE_CALLS`` times ``calls`` turns. Arguments and errors are those of measure_whole.
    """
    target = measuring_device(device, mode)
    if mode == "compiled":
        runs = [torch.compile(run, dynamic=False) for run in runs]
    with torch.inference_mode(), steady_cpu():
        for run in runs:
            for _ in range(2):
                run()
        if mode == "cuda_graph":
            runs = [_captured(run, "the whole") for run in runs]
        if target.type == "cuda":
            return [[_gpu_call_ms(run, target) for _ in range(calls)] for run in runs]
        samples: list[list[Sample]] = [[] for _ in runs]
        while len(samples[0]) < MORE_CALLS * calls and not all(_is_known(found, calls) for found in samples):
            for run, found in zip(runs, samples, strict=True):
                found.append(cpu_call(run))
        return [quietest(found, calls) for found in samples]


class Sample(NamedTuple):
    """One call on the CPU: how long it took, and for how long of that another thread had the core."""

    ms: float
    lost_ms: float

    @property
    def is_quiet(self) -> bool:
        """Whether what another thread took is within 2 % and 0.02 ms."""
        return self.lost_ms <= 0.02 * self.ms + 0.02


def cpu_call(run: Callable[[], Any]) -> Sample:
    """Call a function and time it; freeing what it returns does not count."""
    worked = time.thread_time()
    begin = time.perf_counter()
    output = run()
    took = time.perf_counter() - begin
    worked = time.thread_time() - worked
    del output
    return Sample(took * 1e3, (took - worked) * 1e3)


def quietest(samples: Sequence[Sample], least: int) -> list[float]:
    """Times in ms of the samples that nothing disturbed; of the ``least`` least disturbed where those are fewer."""
    quiet = [sample.ms for sample in samples if sample.is_quiet]
    if len(quiet) >= least:
        return quiet
    return [sample.ms for sample in sorted(samples, key=lambda sample: sample.lost_ms / sample.ms)[:least]]


def summarise(samples_ms: Sequence[float], launch_ms: float = 0.0) -> SignatureCost:
    """Median and inter-quartile range of at least two samples in ms; launch_ms is noted as it is.

    >>> summarise([5.0, 1.0, 2.0, 3.0, 4.0])
    SignatureCost(median_ms=3.0, iqr_ms=2.0, launch_ms=0.0)
    """
    low, _, high = statistics.quantiles(samples_ms, n=4, method="inclusive")
    return SignatureCost(median_ms=statistics.median(samples_ms), iqr_ms=high - low, launch_ms=launch_ms)


@contextmanager
def steady_cpu() -> Iterator[None]:
    """Inside it the CPU has one thread, and keeps freed memory as the engine's ranks do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def time_gpu_calls(calls: Sequence[Call], mode: TimingMode) -> SignatureCost:
    """Time on the GPU per call of long runs in which the calls take turns, and the host's time per launch.

    Raises:
        MeasureError: The calls cannot be captured in a CUDA graph; only in the modes that replay one.
    """

    def enqueue(count: int) -> None:
        for index in range(count):
            calls[index % len(calls)].run()

    def elapsed_ms(run: Callable[[], Any], ahead: Callable[[], Any] | None = None) -> tuple[float, float]:
        """Device time between events around a run, and host time. ahead: keeps the device busy until then."""
        begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        if ahead is not None:
            ahead()
        begin.record()
        host = time.perf_counter()
        run()
        host = (time.perf_counter() - host) * 1e3
        end.record()
        end.synchronize()
        return begin.elapsed_time(end), host

    trial = 2 * len(calls)
    per_call = elapsed_ms(lambda: enqueue(trial))[0] / trial
    count = min(GPU_MAX_CALLS, max(len(calls), math.ceil(GPU_RUN_MS / max(per_call, 1e-4))))
    eager = [elapsed_ms(lambda: enqueue(count)) for _ in range(MIN_ROUNDS + 2)][2:]  # the first two warm up
    launch_ms = statistics.median(host for _, host in eager) / count
    if mode == "eager":
        return summarise([device_ms / count for device_ms, _ in eager], launch_ms)
    node = calls[0].node
    replay = _captured(lambda: enqueue(count), f"{node.key} ({node.target})")
    replays = [elapsed_ms(replay, ahead=replay)[0] / count for _ in range(MIN_ROUNDS + 2)][2:]
    return summarise(replays, launch_ms)


def _is_known(samples: Sequence[Sample], least: int) -> bool:
    """Whether ``least`` samples are undisturbed and their median's standard error is at most 1 % of it."""
    quiet = [sample.ms for sample in samples if sample.is_quiet]
    if len(quiet) < max(least, 2):
        return False
    cost = summarise(quiet)
    return 0.93 * cost.iqr_ms / math.sqrt(len(quiet)) <= PRECISION * cost.median_ms  # as of a normal distribution


def _gpu_call_ms(run: Callable[[], Any], device: torch.device) -> float:
    torch.cuda.synchronize(device)
    begin = time.perf_counter()
    run()
    torch.cuda.synchronize(device)
    return (time.perf_counter() - begin) * 1e3


def _captured(run: Callable[[], Any], what: str) -> Callable[[], Any]:
    """A function that replays ``run`` as a CUDA graph."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError as error:
        raise MeasureError(
            f"{what} cannot be captured in a CUDA graph: {first_line(error)}; measure in mode 'eager'"
        ) from error
    return graph.replay
