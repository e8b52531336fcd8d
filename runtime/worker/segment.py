"""Segment: a run of nodes, lowered to a torch.fx GraphModule for one device."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from partitioner.graph.ir import Node
from partitioner.graph.operators import lowered
from partitioner.graph.torch_private import forget_source_with
from partitioner.plan.hoisted import Hoisted
from runtime.devices.cuda_graphs import GraphedRun, Pool
from runtime.worker.compiled import compiled


class Segment:
    """A run of nodes as one GraphModule.

    Args:
        nodes: in their order.
        reads: names of the values that it takes.
        keeps: names of the values that it returns.
        device: where it runs.
    """

    def __init__(self, nodes: Sequence[Node], reads: Sequence[str], keeps: Sequence[str], device: torch.device) -> None:
        self.reads = tuple(reads)
        self.keeps = tuple(keeps)
        self.module = lower(nodes, self.reads, self.keeps, device)
        self._run: Callable[..., Sequence[torch.Tensor]] = self.module
        self._writes = any(node.group >= 0 for node in nodes)
        ends = list(dict.fromkeys(node.module or node.key for node in (nodes[0], nodes[-1])))
        self.name = " .. ".join(ends)  # for recordings
        self._key_of = {f"v{index}": node.key for index, node in enumerate(nodes)}

    def __call__(self, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run it: the values that it keeps, by name. values: by name, at least those that it reads."""
        outputs = self._run(*[values[name] for name in self.reads])
        return dict(zip(self.keeps, outputs, strict=True))

    def compile(self) -> None:
        """From now on run what torch.compile makes of it; the next call compiles it."""
        self._run = compiled(self.module)

    def replay(self, fixed: Collection[str], pool: Pool) -> None:
        """From now on replay it from a CUDA graph, after some calls (runtime.devices.cuda_graphs).

        A segment that writes in place is not replayed: another segment may read the storage, and a graph has its own.

        Args:
            fixed: names of what it reads that is the same tensor in every call.
            pool: the memory of the rank's graphs.
        """
        if not self._writes:
            self._run = GraphedRun(self._run, [name in fixed for name in self.reads], pool)

    @property
    def is_settled(self) -> bool:
        """Whether later calls only repeat what the last one did; before that, its CUDA graph is captured."""
        return not isinstance(self._run, GraphedRun) or self._run.is_captured

    def first_node(self, values: Mapping[str, torch.Tensor], wanted: Callable[[torch.Tensor], bool]) -> str | None:
        """The key of the first node that makes a tensor for which ``wanted`` holds; runs the segment node by node."""
        finder = _Finder(self.module, wanted)
        finder.run(*[values[name] for name in self.reads])
        return self._key_of.get(finder.found)

    def failing_node(self, error: BaseException, values: Mapping[str, torch.Tensor]) -> str | None:
        """The key of the node in which the call on ``values`` raised ``error``, read from the traceback.

        In compiled code no line belongs to one node: there the segment runs again as it was lowered, to fail once more.
        """
        key = self._node_in(error)
        if key is None and self._run is not self.module:
            try:
                self.module(*[values[name] for name in self.reads])
            except Exception as again:
                key = self._node_in(again)
        return key

    def _node_in(self, error: BaseException) -> str | None:
        lines = self.module.code.splitlines()
        key = None
        traceback = error.__traceback__
        while traceback is not None:
            if traceback.tb_frame.f_code.co_filename.startswith("<eval_with_key>"):
                line = lines[traceback.tb_lineno - 1] if traceback.tb_lineno <= len(lines) else ""
                key = self._key_of.get(line.split("=")[0].split(":")[0].strip(), key)
            traceback = traceback.tb_next
        return key


class _Finder(fx.Interpreter):
    """Runs a module node by node, and notes the first node that makes a tensor for which ``wanted`` holds."""

    def __init__(self, module: fx.GraphModule, wanted: Callable[[torch.Tensor], bool]) -> None:
        super().__init__(module)
        self.found = ""
        self._wanted = wanted

    def run_node(self, n: fx.Node) -> Any:
        made = super().run_node(n)
        if n.op == "call_function" and not self.found:
            tensors = made if isinstance(made, (list, tuple)) else (made,)
            if any(isinstance(tensor, torch.Tensor) and self._wanted(tensor) for tensor in tensors):
                self.found = n.name
        return made


class HoistedSegments:
    """The hoisted nodes of one rank as segments, None where there are no such nodes.

    later: values that latent nodes, or other ranks, read.
    """

    def __init__(self, hoisted: Hoisted, by_name: Mapping[str, Node], later: set[str], device: torch.device) -> None:
        reads = {v for name in hoisted.timestep for v in by_name[name].reads}
        prompt_reads = {v for name in hoisted.prompt for v in by_name[name].reads}
        self.timestep = _segment(hoisted.timestep, by_name, later, device)
        self.prompt = _segment(hoisted.prompt, by_name, later | reads, device)
        self.constant = _segment(hoisted.constant, by_name, later | reads | prompt_reads, device)


def _segment(
    names: Sequence[str], by_name: Mapping[str, Node], later: set[str], device: torch.device
) -> Segment | None:
    if not names:
        return None
    nodes = [by_name[name] for name in names]
    made = set(names)
    reads = dict.fromkeys(v for node in nodes for v in node.reads if v not in made)
    return Segment(nodes, list(reads), [name for name in names if name in later], device)


def lower(nodes: Sequence[Node], reads: Sequence[str], keeps: Sequence[str], device: torch.device) -> fx.GraphModule:
    """What ``lowered`` makes of nodes; its source text goes when it does."""
    module = lowered(nodes, reads, keeps, device)
    forget_source_with(module)
    return module
