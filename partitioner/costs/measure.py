"""measure: run each distinct operator call of a graph on random tensors and time it; no model weights are needed.

CPU: calls take turns. A round runs every distinct call once, in the order of the graph, so that weights come from
memory and code from cold caches as in a real step, while the activations that a call reads are touched just
before, as if just computed. Repeating one call in a loop instead makes its weights cache-hot and the sum of a
denoiser's nodes some 10 % too small; flushing all caches makes it up to 30 % too large. Calls during which another
thread had the core do not count, where there are enough others.

"compiled": every operator is what torch.compile makes of it alone, less what calling any compiled function takes. That
operators fuse is not seen in it, so the sum lies above the whole, more so the more elementwise operators there are.

GPU: a call is repeated on copies of its parameters that together exceed the L2 cache. "eager" times calls that
the host enqueues one after the other, so the longer of kernel and launch counts; "cuda_graph" replays them
captured, so kernels alone count, and so does "compiled". All note the host's time per launch.
"""

from __future__ import annotations

import datetime
import math
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from partitioner.costs.operator_calls import Call, compiled_node, extent, first_run, make_call
from partitioner.costs.signature import signature
from partitioner.errors import MeasureError, first_line
from partitioner.graph.ir import Node, TracedGraph
from partitioner.graph.operator_classes import is_free, value_metas
from partitioner.process import keep_freed_memory
from profiles.cost_profile import SCHEMA_VERSION, CostProfile, SignatureCost

TimingMode = Literal["eager", "cuda_graph", "compiled"]
Progress = Callable[[int, int], None]

MIN_ROUNDS = 5
MAX_ROUNDS = 15  # of calls below SLOW_MS; a slow call's spread is small
SLOW_MS = 50.0
PRECISION = 0.01  # of the median of whole components or denoisers
MORE_CALLS = 5
BATCH_BYTES = 2 << 30  # tensors held at once while calls take turns; many times the cache
GPU_RUN_MS = 2.0  # what one timed run of repeated calls takes at least, well above the resolution of events
GPU_MAX_CALLS = 200  # per run; the driver's queue holds about 1000 launches before the host must wait


def measure(
    graph: TracedGraph,
    device: str = "cpu",
    *,
    mode: TimingMode = "eager",
    command: str = "",
    progress: Progress | None = None,
) -> CostProfile:
    """Time every distinct signature of a graph on a device: median and inter-quartile range of at least 5.

    device: "cpu" (one thread) or "cuda:0". mode: "cuda_graph" needs a GPU, "compiled" on a CPU a C++ compiler.
    command: what to note as its origin.
    progress: called with (signatures done, signatures in all).
    Raises MeasureError for a device that is not there and for an operator that the device does not support.
    """
    target = measuring_device(device, mode)
    calls = distinct_calls(graph, mode)
    report = progress or (lambda done, total: None)
    with torch.inference_mode(), _steady_cpu():
        if target.type == "cpu":
            costs = _measure_cpu(graph, calls, mode, report)
        else:
            costs = _measure_cuda(graph, calls, target, mode, report)
    return CostProfile(
        schema_version=SCHEMA_VERSION,
        device="cpu" if target.type == "cpu" else "cuda",
        device_name=_device_name(target),
        clock_mhz=_clock_mhz(target),
        versions=_versions(target),
        dtype=_dtype(graph),
        mode=mode,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=command,
        signatures=costs,
    )


def measure_whole(
    run: Callable[[], Any], device: str = "cpu", *, mode: TimingMode = "eager", calls: int = 5
) -> list[float]:
    """Times in ms of whole calls of ``run``, one after the other, after two that warm up; the CPU with one thread.

    mode "cuda_graph": ``run`` is captured once and replayed; "compiled": compiled once, which may take minutes.
    MeasureError as for measure.
    """
    return measure_by_turns([run], device, mode=mode, calls=calls)[0]


def measure_by_turns(
    runs: Sequence[Callable[[], Any]], device: str = "cpu", *, mode: TimingMode = "eager", calls: int = 5
) -> list[list[float]]:
    """As measure_whole, of each of several, which take turns: where the machine becomes slower meanwhile, all do.

    On a CPU they go on until the median of each is known to 1 %, for at most ``MORE_CALLS`` times ``calls`` turns.
    """
    target = measuring_device(device, mode)
    if mode == "compiled":
        runs = [torch.compile(run, dynamic=False) for run in runs]
    with torch.inference_mode(), _steady_cpu():
        for run in runs:
            for _ in range(2):
                run()
        if mode == "cuda_graph":
            runs = [_captured(run, "the whole") for run in runs]
        if target.type == "cuda":
            return [[_gpu_call_ms(run, target) for _ in range(calls)] for run in runs]
        samples: list[list[_Sample]] = [[] for _ in runs]
        while len(samples[0]) < MORE_CALLS * calls and not all(_is_known(found, calls) for found in samples):
            for run, found in zip(runs, samples, strict=True):
                found.append(_cpu_call(run))
        return [quietest(found, calls) for found in samples]


def _is_known(samples: Sequence[_Sample], least: int) -> bool:
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


class _Sample(NamedTuple):
    """One call on the CPU: how long it took, and for how long of that another thread had the core."""

    ms: float
    lost_ms: float

    @property
    def is_quiet(self) -> bool:
        return self.lost_ms <= 0.02 * self.ms + 0.02


def _cpu_call(run: Callable[[], Any]) -> _Sample:
    worked = time.thread_time()
    begin = time.perf_counter()
    output = run()
    took = time.perf_counter() - begin
    worked = time.thread_time() - worked
    del output  # freeing is not the call's work
    return _Sample(took * 1e3, (took - worked) * 1e3)


def quietest(samples: Sequence[_Sample], least: int) -> list[float]:
    """Times in ms of the samples that nothing disturbed; of the ``least`` least disturbed where those are fewer."""
    quiet = [sample.ms for sample in samples if sample.is_quiet]
    if len(quiet) >= least:
        return quiet
    return [sample.ms for sample in sorted(samples, key=lambda sample: sample.lost_ms / sample.ms)[:least]]


def _captured(run: Callable[[], Any], what: str) -> Callable[[], Any]:
    """What replays ``run`` as a CUDA graph."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError as error:
        raise MeasureError(
            f"{what} cannot be captured in a CUDA graph: {first_line(error)}; measure in mode 'eager'"
        ) from error
    return graph.replay


@contextmanager
def _steady_cpu() -> Iterator[None]:
    """One thread, and memory as the engine's ranks have it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measuring_device(name: str, mode: TimingMode) -> torch.device:
    """The CPU or the GPU of that name; MeasureError where it is not there or does not know the mode."""
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


def distinct_calls(graph: TracedGraph, mode: TimingMode) -> dict[str, Node]:
    """signature -> the first node that has it, in the order of the graph; without what costs nothing in that mode."""
    calls: dict[str, Node] = {}
    for node in graph.nodes:
        if not is_free(graph, node, mode):
            calls.setdefault(signature(graph, node), node)
    return calls


def summarise(samples_ms: Sequence[float], launch_ms: float = 0.0) -> SignatureCost:
    """Median and inter-quartile range of at least two samples."""
    low, _, high = statistics.quantiles(samples_ms, n=4, method="inclusive")
    return SignatureCost(median_ms=statistics.median(samples_ms), iqr_ms=high - low, launch_ms=launch_ms)


def _measure_cpu(
    graph: TracedGraph, calls: Mapping[str, Node], mode: TimingMode, report: Progress
) -> dict[str, SignatureCost]:
    device = torch.device("cpu")
    launch_ms = _compiled_call_ms() if mode == "compiled" else 0.0
    costs: dict[str, SignatureCost] = {}
    for batch in _batches(graph, calls):
        made = {
            text: make_call(graph, node, device, {}, compiled_node(node, device) if mode == "compiled" else None)
            for text, node in batch
        }
        samples: dict[str, list[_Sample]] = {text: [] for text in made}
        for call in made.values():
            first_run(call, device)
        for number in range(MAX_ROUNDS):
            for text, call in made.items():
                if number < MIN_ROUNDS or samples[text][0].ms < SLOW_MS:
                    call.touch()
                    samples[text].append(_cpu_call(call.run))
        for text, found in samples.items():
            costs[text] = summarise([max(ms - launch_ms, 0.0) for ms in quietest(found, MIN_ROUNDS)], launch_ms)
        report(len(costs), len(calls))
    return costs


def _compiled_call_ms() -> float:
    """What calling a compiled function takes that computes next to nothing, in ms."""
    add = torch.compile(lambda tensor: tensor + 1, dynamic=False)
    one = torch.ones(1)
    for _ in range(3):
        add(one)
    return statistics.median(_cpu_call(lambda: add(one)).ms for _ in range(101))


def _measure_cuda(
    graph: TracedGraph, calls: Mapping[str, Node], device: torch.device, mode: TimingMode, report: Progress
) -> dict[str, SignatureCost]:
    cache_bytes = int(torch.cuda.get_device_properties(device).L2_cache_size)
    costs: dict[str, SignatureCost] = {}
    with torch.cuda.device(device):
        for done, (text, node) in enumerate(calls.items(), 1):
            copies = _copies_beyond_cache(graph, node, cache_bytes)
            fresh: dict[str, Any] = {}  # the copies share what a step has just computed
            compiled = compiled_node(node, device) if mode == "compiled" else None
            made = [make_call(graph, node, device, fresh, compiled) for _ in range(copies)]
            for call in made:
                first_run(call, device)
            costs[text] = _time_cuda(made, mode)
            report(done, len(calls))
    return costs


def _time_cuda(calls: Sequence[Call], mode: TimingMode) -> SignatureCost:
    """Time per call of long runs in which the calls take turns."""

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


def _batches(graph: TracedGraph, calls: Mapping[str, Node]) -> Iterator[list[tuple[str, Node]]]:
    """The calls in order, in runs whose tensors fit BATCH_BYTES together (or of one call)."""
    batch: list[tuple[str, Node]] = []
    held = 0
    for text, node in calls.items():
        size = sum(4 * extent(meta) for name in node.reads for meta in value_metas(graph, name))
        if batch and held + size > BATCH_BYTES:
            yield batch
            batch, held = [], 0
        batch.append((text, node))
        held += size
    if batch:
        yield batch


def _copies_beyond_cache(graph: TracedGraph, node: Node, cache_bytes: int) -> int:
    """How many sets of its parameters exceed twice the cache: 1 to 16, and 1 where it reads none."""
    size = sum(graph.parameter_by_name[name].meta.size_bytes for name in node.reads if name in graph.parameter_by_name)
    return 1 if size == 0 else min(16, math.ceil(2 * cache_bytes / size) + 1)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _clock_mhz(device: torch.device) -> float | None:
    if device.type == "cuda":
        try:
            return float(torch.cuda.clock_rate(device)) or None
        except Exception:  # it asks the driver's management library, which may be missing
            return None
    text = _cpuinfo("cpu MHz")
    return float(text) if text else None


def _cpuinfo(field: str) -> str | None:
    path = Path("/proc/cpuinfo")
    found = re.search(rf"^{field}\s*:\s*(.+)$", path.read_text(), re.MULTILINE) if path.exists() else None
    return found[1].strip() if found else None


def _versions(device: torch.device) -> dict[str, str]:
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    if device.type == "cuda":
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        versions |= {"cuda": str(torch.version.cuda), "cudnn": str(cudnn)}
    return versions


def _dtype(graph: TracedGraph) -> str:
    """The dtype that most parameter elements have; float32 without parameters."""
    count: dict[str, int] = {}
    for parameter in graph.parameters:
        count[parameter.meta.dtype] = count.get(parameter.meta.dtype, 0) + parameter.meta.numel
    return max(count, key=lambda dtype: count[dtype], default="float32")
