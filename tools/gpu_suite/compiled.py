"""compiled: times of a whole denoiser as torch.compile makes it."""

from __future__ import annotations

import os
import statistics
import time
from contextlib import ExitStack
from typing import Any

import torch

from partitioner.costs.timing import measure_whole
from partitioner.errors import MeasureError
from partitioner.graph.torch_private.compiled import compiled_then
from tools.gpu_suite.denoisers import graphs_of
from tools.gpu_suite.node_calls import call_of
from tools.gpu_suite.part_run import PartRun
from tools.gpu_suite.plans import modes_of

LIMIT_S = 90.0  # for having the device in one go


def compiled(run: PartRun) -> dict[str, Any]:
    """Time the whole denoiser compiled, with and without CUDA graphs. It has the device once the compiler is done."""
    processors = os.sched_getaffinity(0)
    if len(processors) > 2:  # others measure meanwhile
        os.sched_setaffinity(0, sorted(processors)[-len(processors) // 3 :])
    graph = graphs_of(run.denoiser, run.folder).whole
    document: dict[str, Any] = {"denoiser": run.denoiser}
    start = time.perf_counter()
    with ExitStack() as stack:

        def have_device() -> None:
            if "compile_s" not in document:
                document["compile_s"] = time.perf_counter() - start
                run.save(document)
                stack.enter_context(run.alone(LIMIT_S))
                os.sched_setaffinity(0, processors)

        call = call_of(graph, graph.nodes, run.target, lambda function: compiled_then(function, have_device))
        with torch.inference_mode():
            call()
        run.synchronize()
        document["first_call_s"] = time.perf_counter() - start
        for mode in modes_of(run)[::-1]:
            try:
                document[f"{mode}_ms"] = statistics.median(measure_whole(call, run.device, mode=mode))
            except MeasureError as error:
                document[f"{mode}_refused"] = str(error)
            run.save(document)
    return document
