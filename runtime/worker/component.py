"""Component: a program and its nodes, lowered to torch.fx GraphModules that one device runs."""

from __future__ import annotations

import torch

from partitioner.plan.program import Compute
from runtime.devices.cuda_graphs import graph_pool
from runtime.worker.segment import HoistedSegments, Segment
from runtime.worker.specs import ComponentSpec


class Component:
    """A ComponentSpec lowered for one device.

    segments: number of an instruction of the program that is a Compute -> what it runs. hoisted: the nodes that do not
    depend on the latent. inputs: the wires of the inputs that it reads. wire_index: value name -> index of its wire.

    Args:
        spec: what to lower.
        device: where it runs.
        compile: run what torch.compile makes of the segments.
        cuda_graphs: replay the segments from CUDA graphs.
    """

    def __init__(
        self, spec: ComponentSpec, device: torch.device, *, compile: bool = False, cuda_graphs: bool = False
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
        if cuda_graphs:
            fixed = {p.name for p in spec.parameters} | set(spec.program.hoisted.constant)
            pool = graph_pool()
            for segment in self.segments.values():
                segment.replay(fixed, pool)

    @property
    def is_settled(self) -> bool:
        """Whether every segment is, see Segment.is_settled."""
        return all(segment.is_settled for segment in self.segments.values())
