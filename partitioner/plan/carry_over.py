"""A plan's placement, carried over to a graph that was traced at another size or has extra nodes.

Known nodes keep their component. A node that the plan does not know (a LoRA adds some below the layer that it wraps, a
ControlNet's residuals are added where no module is) goes where its module's nodes are, or else where its neighbours
are, within what these allow; results go to the last component. Nodes that cannot be cut apart stay together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from partitioner.errors import PlanError
from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Node
from partitioner.plan.inseparable import inseparable_pairs
from partitioner.plan.placement import KeyPlacement, NamePlacement
from partitioner.search.units import joined_units

MIN_COVERED = 0.9  # share of the plan's nodes that a graph must have, and of the graph's that the plan must know


def carry_over(placement: KeyPlacement, graph: TracedGraph, forward_only: bool, origin: str) -> dict[str, int]:
    """Latent node name -> component, in execution order.

    placement: node key -> component. forward_only: values may only go to components further along the chain.
    origin: what the plan was made for, named in errors. Raises PlanError if values would have to go back.
    """
    unit_of = _units(graph)
    component_of_unit: dict[str, int] = {}
    known = _known_keys(placement, graph)
    for node in graph.latent_nodes:
        if node.key in known:
            component_of_unit.setdefault(unit_of[node.name], placement[node.key])
    if len(component_of_unit) < len(set(unit_of.values())):
        _place_unknown(placement, graph, forward_only, unit_of, component_of_unit)
    placed = {node.name: component_of_unit[unit_of[node.name]] for node in graph.latent_nodes}
    if forward_only:
        check_forward(graph, placed, origin)
    return placed


def _known_keys(placement: KeyPlacement, graph: TracedGraph) -> set[str]:
    """The keys that name the same node in both: where a module calls an operator more often, its count is off."""
    numbers: tuple[dict[str, set[str]], dict[str, set[str]]] = ({}, {})
    for found, keys in zip(numbers, (placement, (node.key for node in graph.latent_nodes)), strict=True):
        for key in keys:
            operator, number = key.rsplit(".", 1)
            found.setdefault(operator, set()).add(number)
    ours, theirs = numbers
    return {f"{name}.{number}" for name, found in ours.items() if found == theirs.get(name) for number in found}


def check_forward(graph: TracedGraph, placed: NamePlacement, origin: str) -> None:
    """PlanError if some value goes to an earlier component of the chain."""
    for node in graph.latent_nodes:
        for name in node.reads:
            if placed.get(name, 0) > placed[node.name]:
                source = graph.node_by_name[name].key
                raise PlanError(
                    f"the plan for {origin} does not fit: {node.key} on component {placed[node.name]} reads {source} "
                    f"from component {placed[name]}, and look-ahead only goes forward; make a plan for this model"
                )


def check_coverage(placement: KeyPlacement, graph: TracedGraph, origin: str) -> None:
    """PlanError unless plan and graph know most of each other: a key is known below a module that the other names."""
    keys = {node.key for node in graph.latent_nodes}
    modules = {module for node in graph.latent_nodes for module in _enclosing(node.module)}
    there = sum(key in keys or (key[0] != "/" and _module(key) in modules) for key in placement)
    plan_modules = {_module(key) for key in placement} - {""}
    known = sum(key in placement or any(module in plan_modules for module in _enclosing(_module(key))) for key in keys)
    if there < MIN_COVERED * len(placement) or known < MIN_COVERED * len(keys):
        raise PlanError(
            f"the plan was made for {origin}: {there} of its {len(placement)} nodes are in {graph.model} "
            f"({graph.class_name}), and it knows {known} of that one's {len(keys)}; make a plan for it"
        )


def _units(graph: TracedGraph) -> dict[str, str]:
    """Latent node name -> the first node of its unit, which stays on one component."""
    nodes = graph.latent_nodes
    together = joined_units(len(nodes), inseparable_pairs(nodes)).tolist()
    return {node.name: nodes[unit].name if unit >= 0 else node.name for node, unit in zip(nodes, together, strict=True)}


def _place_unknown(
    placement: KeyPlacement,
    graph: TracedGraph,
    forward_only: bool,
    unit_of: Mapping[str, str],
    component_of_unit: dict[str, int],
) -> None:
    """Give every unit without a component the one of its module, between its sources and its readers."""
    last = max(placement.values())
    ceiling = _ceilings(graph, unit_of, component_of_unit, last)
    in_module = _components_by_module(placement)
    members: dict[str, list[Node]] = {}
    for node in graph.latent_nodes:
        members.setdefault(unit_of[node.name], []).append(node)
    before = placement[next(iter(placement))]
    results = set(graph.result_values)
    for unit, nodes in members.items():
        if unit not in component_of_unit:
            choice = _of_module(nodes[0], in_module, before, _near(nodes, graph, unit_of, component_of_unit, before))
            if any(node.name in results for node in nodes):
                choice = last
            if forward_only:
                sources = [component_of_unit.get(unit_of.get(name, ""), 0) for node in nodes for name in node.reads]
                choice = max(min(choice, ceiling[unit]), *sources, 0)
            component_of_unit[unit] = choice
        before = component_of_unit[unit]


def _near(
    nodes: Sequence[Node], graph: TracedGraph, unit_of: Mapping[str, str], known: Mapping[str, int], before: int
) -> int:
    """A component that a unit reads from and is read by, if there is one, so that nothing is sent for it."""

    def components(names: Iterable[str]) -> set[int]:
        return {known[unit_of[name]] for name in names if unit_of.get(name) in known}

    sources = components(name for node in nodes for name in node.reads)
    readers = components(name for node in nodes for name in graph.readers.get(node.name, ()))
    both = sources & readers
    return min(both) if both and before not in both else before


def _ceilings(graph: TracedGraph, unit_of: Mapping[str, str], known: Mapping[str, int], last: int) -> dict[str, int]:
    """unit -> the smallest component among the known nodes that depend on it."""
    ceiling = {unit: known.get(unit, last) for unit in unit_of.values()}
    for node in reversed(graph.latent_nodes):
        limit = ceiling[unit_of[node.name]]
        for name in node.reads:
            if name in unit_of and unit_of[name] not in known:
                ceiling[unit_of[name]] = min(ceiling[unit_of[name]], limit)
    return ceiling


def _components_by_module(placement: KeyPlacement) -> dict[str, set[int]]:
    """module path -> components of the plan's nodes in it and below it."""
    found: dict[str, set[int]] = {}
    for key, component in placement.items():
        for module in _enclosing(_module(key)):
            found.setdefault(module, set()).add(component)
    return found


def _of_module(node: Node, in_module: Mapping[str, set[int]], before: int, near: int) -> int:
    """The component of the innermost module that the plan knows; where that has several, the preceding node's.

    before: that of the preceding node. near: for a node in no such module.
    """
    for module in _enclosing(node.module):
        components = in_module.get(module)
        if components:
            return before if before in components else min(components, key=lambda c: (abs(c - before), c))
    return near


def _module(key: str) -> str:
    return key.split("/", 1)[0]


def _enclosing(module: str) -> list[str]:
    """'a.b.c' -> ['a.b.c', 'a.b', 'a'], innermost first."""
    return list(accumulate(module.split("."), lambda a, b: f"{a}.{b}"))[::-1] if module else []
