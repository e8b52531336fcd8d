"""concurrency: whether components run at once on shares of one GPU, without the engine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from partitioner.errors import first_line
from runtime.devices.cuda_shares import share_size, share_streams
from runtime.errors import InputError
from tools.gpu_suite.denoisers import graphs_of
from tools.gpu_suite.node_calls import call_of, free
from tools.gpu_suite.part_run import PartRun
from tools.gpu_suite.plans import plan_of

COUNTS = (4, 2)  # of components on the GPU
REPLAYS = 10  # of each component in one measurement
ROUNDS = 5  # of measurements, whose median counts
LIMIT_S = 60.0  # for having the device in one go


class CapturedCall:
    """A call captured as a CUDA graph on a stream.

    It also holds the tensors that the graph reads, since the graph has only their addresses.
    """

    def __init__(self, run: Callable[[], Any], stream: torch.cuda.Stream) -> None:
        self.stream, self._run = stream, run
        with torch.inference_mode():
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    run()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=stream):
                self._outputs = run()

    def replay(self) -> None:
        with torch.cuda.stream(self.stream):
            self._graph.replay()


def together_ms(loops: Sequence[CapturedCall]) -> float:
    """Time in ms of replaying all of them at once, each on its stream; median over rounds."""
    samples = []
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(REPLAYS):
            for loop in loops:
                loop.replay()
        torch.cuda.synchronize()
        samples.append((time.perf_counter() - start) * 1e3 / REPLAYS)
    return statistics.median(samples)


def concurrency(run: PartRun) -> dict[str, Any]:
    """Run N components at once, each on its share of the GPU, beside the whole denoiser on one such share.

    Memory bandwidth and clock are shared all the same and show in the figures: "alone" runs one component at a time
    on its share. "unshared" runs each alone, and then all at once, on ordinary streams of the whole GPU.
    """
    graph = graphs_of(run.denoiser, run.folder).whole
    whole = call_of(graph, graph.latent_nodes, run.target)
    document: dict[str, Any] = {"denoiser": run.denoiser, "rows": []}
    with run.alone(LIMIT_S):
        document["whole_ms"] = together_ms([CapturedCall(whole, _new_stream(run.target))])
    for count in COUNTS:
        placed = plan_of(run, graph, count).place(graph)
        row: dict[str, Any] = {"components": count}
        document["rows"].append(row)
        with run.alone(LIMIT_S):
            calls = [
                call_of(graph, [node for node in graph.latent_nodes if placed[node.name] == k], run.target)
                for k in range(count)
            ]
            loops = [CapturedCall(call, _new_stream(run.target)) for call in calls]
            row["unshared_alone_ms"] = [together_ms([loop]) for loop in loops]
            row["unshared_together_ms"] = together_ms(loops)
            del loops
            run.save(document)
            try:
                row |= _on_shares(run, whole, calls)
            except (InputError, RuntimeError) as error:
                row["refused"] = first_line(error)
            run.save(document)
            del calls
            free()
    return document


def _on_shares(run: PartRun, whole: Callable[[], Any], calls: Sequence[Callable[[], Any]]) -> dict[str, Any]:
    index = run.target.index or 0
    streams = share_streams(index, len(calls))
    on_share = together_ms([CapturedCall(whole, streams[0])])
    loops = [CapturedCall(call, stream) for call, stream in zip(calls, streams, strict=True)]
    alone = [together_ms([loop]) for loop in loops]
    together = together_ms(loops)
    return {
        "multiprocessors": share_size(index, len(calls)),
        "whole_on_share_ms": on_share,
        "alone_ms": alone,
        "together_ms": together,
        "speedup": on_share / together,
    }


def _new_stream(device: torch.device) -> torch.cuda.Stream:
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream
