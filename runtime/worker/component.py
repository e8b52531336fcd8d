"""Component: a program and its nodes, lowered to torch.fx GraphModules that one device runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from partitioner.graph.nodes import Role
from partitioner.plan.program import Compute, Send
from runtime.devices.capture import GraphMemory, check_usable
from runtime.worker.segment import HoistedSegments, Segment
from runtime.worker.specs import ComponentSpec


@dataclass(frozen=True)
class Running:
    """What one evaluation runs. segments: by the number of the instruction. timestep: see HoistedSegments."""

    segments: Mapping[int, Segment]
    timestep: Segment | None


class _Evaluation(AbstractContextManager[Running]):
    """The evaluations that are under way: what the first runs, and what those do that begin before it has ended."""

    def __init__(self, first: Running, others: Running) -> None:
        self._first = first
        self._others = others
        self._open = 0

    def __enter__(self) -> Running:
        self._open += 1
        return self._first if self._open == 1 else self._others

    def __exit__(self, *_: object) -> None:
        self._open -= 1


class Component:
    """A ComponentSpec lowered for one device.

    segments: number of an instruction of the program that is a Compute -> what it runs. hoisted: the nodes that do not
    depend on the latent. inputs: the wires of the inputs that it reads. wire_index: value name -> index of its wire.

    Args:
        spec: what to lower.
        device: where it runs.
        compile: run what torch.compile makes of the segments.
        cuda_graphs: replay the segments from CUDA graphs, where the device has such and they can be captured.
        copied: which of the values that it sends, or are results, are copied before its next evaluation.
    """

    def __init__(
        self,
        spec: ComponentSpec,
        device: torch.device,
        *,
        compile: bool = False,
        cuda_graphs: bool = False,
        copied: Collection[str] = (),
    ) -> None:
        self.spec = spec
        self.wire_index = {wire.value: index for index, wire in enumerate(spec.wires)}
        self.inputs = tuple(spec.wires[self.wire_index[name]] for name in spec.program.inputs)
        by_name = {node.name: node for node in spec.nodes}
        own = set(spec.program.hoisted.names)
        latent_reads = {v for node in spec.nodes if node.name not in own for v in node.reads}
        self.hoisted = HoistedSegments(spec.program.hoisted, by_name, latent_reads, device)
        self.segments = {
            index: Segment([by_name[name] for name in step.nodes], step.reads, step.keeps, device)
            for index, step in enumerate(spec.program.instructions)
            if isinstance(step, Compute)
        }
        if compile:
            for segment in self.segments.values():
                segment.compile()
        self._eager = Running(self.segments, self.hoisted.timestep)
        self._on_gpu = can_capture(device)
        self._running = self._replayed(copied) if cuda_graphs and self._on_gpu else self._eager
        self._evaluation = _Evaluation(self._running, self._eager)

    def _replayed(self, copied: Collection[str]) -> Running:
        spec, program = self.spec, self.spec.program
        fixed = {p.name for p in spec.parameters} | set(program.hoisted.constant)
        prompts = {wire.value for wire in self.inputs if wire.role <= Role.PROMPT} | set(program.hoisted.prompt)
        leaving = {step.value for step in program.instructions if isinstance(step, Send)} | set(program.results)
        leaving -= set(copied)
        memory = GraphMemory()
        hoisted = (self.hoisted.timestep, self.hoisted.prompt, self.hoisted.constant)
        everywhere = [*self.segments.values(), *(segment for segment in hoisted if segment is not None)]
        holders = Counter(group for segment in everywhere for group in segment.groups)

        def replayed(segment: Segment) -> Segment:
            # a storage that other segments read or write cannot be the graph's own
            own = all(holders[group] == 1 for group in segment.groups)
            return segment.replayed(fixed, prompts, leaving, memory) if own else segment

        timestep = self.hoisted.timestep
        return Running(
            {index: replayed(segment) for index, segment in self.segments.items()},
            replayed(timestep) if timestep is not None else None,
        )

    def evaluation(self) -> AbstractContextManager[Running]:
        """While an evaluation is under way: what it is to run.

        A graph's replay overwrites what its last one has made, so that of several evaluations that take turns only the
        first replays graphs.

        Raises:
            EngineError: a failed capture, of this or another engine, has left the process's memory of GPUs unusable.
        """
        if self._on_gpu:
            check_usable()
        return self._evaluation

    @property
    def is_settled(self) -> bool:
        """Whether every segment is, see Segment.is_settled."""
        return all(segment.is_settled for segment in self._running.segments.values())


def can_capture(device: torch.device) -> bool:
    """Whether the kernels of a device can be captured as CUDA graphs."""
    return device.type == "cuda"
