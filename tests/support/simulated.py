"""A chain of nodes, simulated: what the tests of the simulator share."""

from __future__ import annotations

from collections.abc import Sequence

from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Input, Node, Ref, Role, TensorMeta
from partitioner.plan.schedule import Schedule
from partitioner.simulator.machine import FREE, Link, Machine
from partitioner.simulator.simulate import Simulation, simulate

META = TensorMeta((1000, 1000), (1000, 1), "float32")  # 4 MB
WIRE = Link(0.25, 4.0)  # 4 MB take 1 ms
BYTES_MS = 1.0
CALLS = 40


def graph_of(reads: Sequence[Sequence[int]]) -> TracedGraph:
    """Node v reads the nodes reads[v]; those without any read the sample. One module per node."""
    nodes = tuple(
        Node(
            name=f"n{v}",
            key=f"m{v}/add.0",
            target="aten.add.Tensor",
            args=tuple(Ref(f"n{u}") for u in own) or (Ref("sample"),),
            kwargs=(),
            module=f"m{v}",
            role=Role.LATENT,
            outputs=(META,),
        )
        for v, own in enumerate(reads)
    )
    return TracedGraph("test", "Test", (Input("sample", META, Role.LATENT),), (), (), nodes, (Ref(nodes[-1].name),))


def chain(length: int) -> TracedGraph:
    return graph_of([[v - 1] if v else [] for v in range(length)])


def run(
    costs: Sequence[float],
    mode: str,
    *,
    machine: Machine | None = None,
    warmup: int = 1,
    periods: Sequence[int] | None = None,
    branches: int = 1,
    calls: int = CALLS,
) -> Simulation:
    """A chain with one node per component."""
    count = len(costs)
    machine = machine or Machine.uniform(count * branches, FREE)
    schedule = Schedule(count, mode, warmup, tuple(periods or [1] * count))
    graph = chain(count)
    placed = {f"n{k}": k for k in range(count)}
    return simulate(graph, placed, named(costs), machine, schedule, calls=calls, branches=branches)


def named(costs: Sequence[float]) -> dict[str, float]:
    return {f"n{v}": ms for v, ms in enumerate(costs)}
