"""Segment: a run of nodes, lowered to a torch.fx GraphModule for one device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from partitioner.graph.nodes import Node
from partitioner.graph.operators import lowered
from partitioner.graph.torch_private.written_text import forget_source_with
from partitioner.plan.hoisted import Hoisted
from runtime.devices.capture import GraphMemory
from runtime.devices.cuda_graphs import Graphed, GraphedRun
from runtime.worker.bound import BoundCode
from runtime.worker.capturable import obstacle
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
        self.groups = {node.group for node in nodes if node.group >= 0}  # of storages that are written to
        self._device = device
        self._bound = BoundCode(self.module)
        self._run: Callable[..., Sequence[torch.Tensor]] = self._bound.call
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

    def replayed(
        self, fixed: Collection[str], kept: Collection[str], leaving: Collection[str], memory: GraphMemory
    ) -> Segment:
        """The same segment, replayed from a CUDA graph after some calls, if it can be (runtime.devices.cuda_graphs).

        Args:
            fixed: names of what it reads that is the same tensor in every call.
            kept: names of what it reads that is another tensor whenever it holds other values.
            leaving: names of what may be read after the evaluation that makes it.
            memory: of the rank's graphs.
        """
        graphed = Graphed(
            function=self._run,
            name=self.name,
            fixed=[name in fixed for name in self.reads],
            kept=[name in kept for name in self.reads],
            leaves=[name in leaving for name in self.keeps],
            obstacle=self._obstacle,
            where=self._node_in,
        )
        made = copy.copy(self)
        made._run = GraphedRun(graphed, memory, self._device)
        return made

    def _obstacle(self, inputs: Sequence[Any]) -> str | None:
        found = obstacle(self.module, inputs, self._device)
        if found is None:
            return None
        node, reason = found
        return f"{reason}, at node {self._key_of[node]}" if node in self._key_of else reason

    @property
    def is_settled(self) -> bool:
        """Whether later calls only repeat what the last one did; before that, its CUDA graph is captured."""
        return not isinstance(self._run, GraphedRun) or self._run.is_settled

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
        if key is None and self._run is not self._bound.call:
            try:
                self._bound.call(*[values[name] for name in self.reads])
            except Exception as again:
                key = self._node_in(again)
        return key

    def _node_in(self, error: BaseException) -> str | None:
        traceback = error.__traceback__
        while traceback is not None:
            if traceback.tb_frame.f_code is self._bound.code:
                return self._key_of.get(self._bound.node_at.get(traceback.tb_lineno, ""))
            traceback = traceback.tb_next
        return None


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
