"""The programs of a placement, one per component.

A component's nodes keep the global execution order. A boundary tensor is received right before its first reader and
sent right after its producer (where its storage is written in place: after the last write).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from partitioner.errors import PlanError
from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Node, Role
from partitioner.plan.boundaries import BoundaryTensor, find_boundaries
from partitioner.plan.deadlock import check_programs
from partitioner.plan.hoisted import by_role, hoisted_nodes
from partitioner.plan.placement import NamePlacement
from partitioner.plan.preamble import shared_nodes
from partitioner.plan.program import Compute, Instruction, Program, Receive, Send


def build_programs(graph: TracedGraph, placement: NamePlacement, components: int) -> tuple[Program, ...]:
    """One program per component, proved to end (``check_programs``).

    Raises PlanError where a component is empty, a result is not made by the last component, a cut runs through
    nodes that share written storage, or a boundary is not one tensor.
    """
    for result in graph.result_values:
        node = graph.node_by_name.get(result)
        if node is None or node.role is not Role.LATENT:
            raise PlanError(f"the denoiser's result %{result} does not depend on the latent; there is nothing to split")
        if placement[result] != components - 1:
            raise PlanError(
                f"the denoiser's result is made by component {placement[result]}; it must be the last, {components - 1}"
            )
    boundaries = {b.value: b for b in find_boundaries(graph, placement)}
    sent_after = _sent_after(graph, placement, boundaries)
    central = shared_nodes(graph, placement, components)
    programs = tuple(_build(graph, placement, k, boundaries, sent_after, central) for k in range(components))
    check_programs(programs)
    return programs


def _sent_after(
    graph: TracedGraph, placement: NamePlacement, boundaries: Mapping[str, BoundaryTensor]
) -> dict[str, list[str]]:
    """node name -> boundary values to send right after it."""
    last_of_group: dict[int, Node] = {}
    components_of_group: dict[int, set[int]] = {}
    for node in graph.latent_nodes:
        if node.group >= 0:
            last_of_group[node.group] = node
            components_of_group.setdefault(node.group, set()).add(placement[node.name])
    for group, found in components_of_group.items():
        if len(found) > 1:
            raise PlanError(f"nodes up to {last_of_group[group].key} write to one storage and must not be cut apart")
    after: dict[str, list[str]] = {}
    for value in boundaries:
        node = graph.node_by_name[value]
        if len(node.outputs) != 1 or node.outputs[0].numel == 0:
            raise PlanError(f"{node.key} ({node.target}) is cut off from its readers, but is not one tensor")
        anchor = last_of_group[node.group] if node.group >= 0 else node
        after.setdefault(anchor.name, []).append(value)
    return after


def _build(
    graph: TracedGraph,
    placement: NamePlacement,
    component: int,
    boundaries: Mapping[str, BoundaryTensor],
    sent_after: Mapping[str, Sequence[str]],
    central: set[str],
) -> Program:
    own = [node for node in graph.latent_nodes if placement[node.name] == component]
    if not own:
        raise PlanError(f"component {component} has no node")
    steps: list[Receive | Send | list[Node]] = []
    received: set[str] = set()
    for node in own:
        for value in node.reads:
            boundary = boundaries.get(value)
            if boundary is not None and boundary.source != component and value not in received:
                received.add(value)
                steps.append(Receive(value, boundary.source))
        if not steps or not isinstance(steps[-1], list):
            steps.append([])
        run = steps[-1]
        assert isinstance(run, list)
        run.append(node)
        steps += [Send(value, boundaries[value].readers) for value in sent_after.get(node.name, ())]
    hoisted = hoisted_nodes(graph, own, central)
    reads = {value for node in [*own, *hoisted] for value in node.reads}
    return Program(
        component=component,
        hoisted=by_role(hoisted),
        instructions=tuple(_with_liveness(steps, set(graph.result_values))),
        inputs=tuple(
            [i.name for i in graph.inputs if i.name in reads]
            + [n.name for n in graph.nodes if n.name in central and n.name in reads]
        ),
        parameters=tuple(p.name for p in graph.parameters if p.name in reads),
        results=tuple(dict.fromkeys(v for v in graph.result_values if placement[v] == component)),
    )


def _with_liveness(steps: Sequence[Receive | Send | list[Node]], results: set[str]) -> list[Instruction]:
    """Turn runs of nodes into Compute instructions that say what must outlive them."""
    instructions: list[Instruction] = []
    live = set(results)
    for step in reversed(steps):
        if isinstance(step, Receive):
            live.discard(step.value)
            instructions.append(step)
        elif isinstance(step, Send):
            live.add(step.value)
            instructions.append(step)
        else:
            made = {node.name for node in step}
            reads = tuple(dict.fromkeys(v for node in step for v in node.reads if v not in made))
            keeps = tuple(node.name for node in step if node.name in live)
            drops = tuple(value for value in reads if value not in live)
            instructions.append(Compute(tuple(node.name for node in step), reads, keeps, drops))
            live = (live - made) | set(reads)
    return instructions[::-1]
