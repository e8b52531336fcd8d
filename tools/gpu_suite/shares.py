"""concurrency: whether components run at once on shares of one GPU, without the engine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from partitioner.costs.timing import measuring_device
from runtime.devices.cuda_shares import share_size, share_streams
from tools.gpu_suite.denoisers import graphs_of
from tools.gpu_suite.node_calls import call_of, free
from tools.gpu_suite.splits import split

COUNTS = (2, 4)  # of ranks on the GPU
REPLAYS = 20  # of each component in one measurement
ROUNDS = 5  # of measurements, whose median counts


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


def concurrency(name: str, device: str, folder: Path) -> dict[str, Any]:
    """Run N components at once, each on its share of the GPU, beside the whole denoiser on one such share.

    Memory bandwidth and clock are shared all the same and show in the figures: "alone" runs one component at a time
    on its share. "unshared" runs them at once on ordinary streams of the whole GPU.
    """
    graphs = graphs_of(name, folder)
    target = measuring_device(device, "eager")
    whole_run = call_of(graphs.whole, graphs.whole.latent_nodes, target)
    on_all = together_ms([CapturedCall(whole_run, _new_stream(target))])
    rows = []
    for count in COUNTS:
        streams = share_streams(target.index, count)
        on_share = together_ms([CapturedCall(whole_run, streams[0])])
        found = split(name, graphs, 1, count, device, folder)
        runs = [
            call_of(graphs.whole, [node for node in graphs.whole.latent_nodes if found.placed[node.name] == k], target)
            for k in range(count)
        ]
        loops = [CapturedCall(run, stream) for run, stream in zip(runs, streams, strict=True)]
        alone = [together_ms([loop]) for loop in loops]
        together = together_ms(loops)
        del loops
        unshared = together_ms([CapturedCall(run, _new_stream(target)) for run in runs])
        rows.append(
            {
                "devices": count,
                "multiprocessors": share_size(target.index, count),
                "whole_on_share_ms": on_share,
                "alone_ms": alone,
                "together_ms": together,
                "unshared_ms": unshared,
                "speedup": on_share / together,
            }
        )
        del runs
        free()
    return {"denoiser": name, "whole_ms": on_all, "rows": rows}


def _new_stream(device: torch.device) -> torch.cuda.Stream:
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream
