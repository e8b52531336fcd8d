"""Program: one component's ordered instructions, derived from graph and placement, never stored. Pure.

A component's nodes keep the global execution order. A boundary tensor is received right before its first
reader and sent right after its producer (for storage that is written in place: after the last write).
Exact and lagged evaluations run the same program; they differ in which message a Receive hands over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from partitioner.errors import PlanError
from partitioner.graph.ir import Node, Role, TracedGraph


@dataclass(frozen=True, slots=True)
class Receive:
    """Make ``value``, which component ``source`` computes, readable from here on."""

    value: str
    source: int

    def __str__(self) -> str:
        return f"Receive %{self.value} from {self.source}"


@dataclass(frozen=True, slots=True)
class Compute:
    """Run nodes in order; ``reads`` come from before, ``keeps`` are read after, ``drops`` are not."""

    nodes: tuple[str, ...]
    reads: tuple[str, ...]
    keeps: tuple[str, ...]
    drops: tuple[str, ...]

    def __str__(self) -> str:
        return f"Compute {self.nodes[0]} .. {self.nodes[-1]} ({len(self.nodes)} nodes)"


@dataclass(frozen=True, slots=True)
class Send:
    """Send ``value`` to components ``readers``."""

    value: str
    readers: tuple[int, ...]

    def __str__(self) -> str:
        return f"Send %{self.value} to {', '.join(map(str, self.readers))}"


Instruction = Receive | Compute | Send


@dataclass(frozen=True)
class Hoisted:
    """Nodes without latent role that one rank computes for itself, in order.

    constant: once after loading. prompt: when a prompt input is new. timestep: at the start of every evaluation.
    """

    constant: tuple[str, ...]
    prompt: tuple[str, ...]
    timestep: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.constant, *self.prompt, *self.timestep)


@dataclass(frozen=True)
class Preamble:
    """What the driver computes for several components at once, and sends with each evaluation's inputs.

    A hoisted node that several components need and that rests on parameters (the timestep's embedding, say) would
    put those parameters on each of them. It is as fresh here: it depends on the driver's inputs only.
    values: what components read of it, in execution order. inputs, parameters: what its nodes read.
    """

    hoisted: Hoisted
    values: tuple[str, ...]
    inputs: tuple[str, ...]
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Program:
    """What one component does.

    hoisted: what it computes for itself of all that does not depend on the latent. instructions: its latent nodes
    and messages. inputs: names of the graph's inputs and the preamble's values that it reads. parameters: names of
    the parameters that it reads. results: names of the denoiser's results that it computes.
    """

    component: int
    hoisted: Hoisted
    instructions: tuple[Instruction, ...]
    inputs: tuple[str, ...]
    parameters: tuple[str, ...]
    results: tuple[str, ...]

    def __str__(self) -> str:
        head = (
            f"component {self.component}: {len(self.parameters)} parameters, inputs {', '.join(self.inputs) or 'none'}"
        )
        return "\n  ".join([head, *map(str, self.instructions)])


@dataclass(frozen=True, slots=True)
class BoundaryTensor:
    """A boundary tensor: ``value``, computed on ``source``, read on each of ``readers`` (ascending)."""

    value: str
    source: int
    readers: tuple[int, ...]


def find_boundaries(graph: TracedGraph, placement: Mapping[str, int]) -> tuple[BoundaryTensor, ...]:
    """The values that cross components, in execution order of their producers.

    placement: latent node name -> component. A result that is not computed by the last component is no
    boundary here: ``build_programs`` refuses it.
    """
    found = []
    for node in graph.latent_nodes:
        source = placement[node.name]
        readers = {placement[name] for name in graph.readers.get(node.name, ())} - {source}
        if readers:
            found.append(BoundaryTensor(node.name, source, tuple(sorted(readers))))
    return tuple(found)


def build_programs(graph: TracedGraph, placement: Mapping[str, int], components: int) -> tuple[Program, ...]:
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
    central = _central(graph, placement, components)
    programs = tuple(_build(graph, placement, k, boundaries, sent_after, central) for k in range(components))
    check_programs(programs)
    return programs


def build_preamble(graph: TracedGraph, placement: Mapping[str, int], components: int) -> Preamble:
    """What the driver computes for the programs of the same arguments."""
    central = _central(graph, placement, components)
    read: set[str] = set()
    for component in range(components):
        own = [node for node in graph.latent_nodes if placement[node.name] == component]
        needed = _hoisted(graph, own, central)
        read |= {name for node in (*own, *needed) for name in node.reads if name in central}
    nodes = _hoisted(graph, [graph.node_by_name[name] for name in read], set())
    nodes = [node for node in graph.nodes if node.name in {n.name for n in nodes} | read]
    reads = {value for node in nodes for value in node.reads}
    return Preamble(
        hoisted=_by_role(nodes),
        values=tuple(node.name for node in nodes if node.name in read),
        inputs=tuple(i.name for i in graph.inputs if i.name in reads),
        parameters=tuple(p.name for p in graph.parameters if p.name in reads),
    )


def _central(graph: TracedGraph, placement: Mapping[str, int], components: int) -> set[str]:
    """Names of the prompt and timestep nodes that several components need and that rest on parameters."""
    needed_by: dict[str, int] = {}
    for component in range(components):
        own = [node for node in graph.latent_nodes if placement[node.name] == component]
        for node in _hoisted(graph, own, set()):
            needed_by[node.name] = needed_by.get(node.name, 0) + 1
    rests: set[str] = {parameter.name for parameter in graph.parameters}
    central: set[str] = set()
    for node in graph.nodes:
        if node.role is Role.LATENT or not any(name in rests for name in node.reads):
            continue
        rests.add(node.name)
        if (
            node.role is not Role.CONSTANT
            and node.group < 0
            and len(node.outputs) == 1
            and needed_by.get(node.name, 0) > 1
        ):
            central.add(node.name)
    return central


def _by_role(nodes: Iterable[Node]) -> Hoisted:
    nodes = list(nodes)
    return Hoisted(
        constant=tuple(n.name for n in nodes if n.role is Role.CONSTANT),
        prompt=tuple(n.name for n in nodes if n.role is Role.PROMPT),
        timestep=tuple(n.name for n in nodes if n.role is Role.TIMESTEP),
    )


def _sent_after(
    graph: TracedGraph, placement: Mapping[str, int], boundaries: Mapping[str, BoundaryTensor]
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
    placement: Mapping[str, int],
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
    hoisted = _hoisted(graph, own, central)
    reads = {value for node in [*own, *hoisted] for value in node.reads}
    return Program(
        component=component,
        hoisted=_by_role(hoisted),
        instructions=tuple(_with_liveness(steps, set(graph.result_values))),
        inputs=tuple(
            [i.name for i in graph.inputs if i.name in reads]
            + [n.name for n in graph.nodes if n.name in central and n.name in reads]
        ),
        parameters=tuple(p.name for p in graph.parameters if p.name in reads),
        results=tuple(dict.fromkeys(v for v in graph.result_values if placement[v] == component)),
    )


def _hoisted(graph: TracedGraph, own: Iterable[Node], given: set[str]) -> list[Node]:
    """The nodes without latent role that ``own`` needs, in execution order; ``given`` come from elsewhere."""
    needed: set[str] = set()
    stack = [name for node in own for name in node.reads]
    while stack:
        name = stack.pop()
        node = graph.node_by_name.get(name)
        if node is not None and node.role is not Role.LATENT and name not in needed and name not in given:
            needed.add(name)
            stack.extend(node.reads)
    written = {graph.node_by_name[name].group for name in needed} - {-1}
    for node in graph.nodes:  # writes to storage that is needed are needed
        if node.group in written and node.role is not Role.LATENT:
            needed.add(node.name)
            needed.update(n for n in node.reads if n in graph.node_by_name)
    return [node for node in graph.nodes if node.name in needed]


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


def check_programs(programs: Sequence[Program]) -> None:
    """Prove by simulation that an exact evaluation ends: every Receive is met by an earlier or other Send.

    Raises PlanError that shows the instruction each component is stuck at. Sends do not block.
    """
    position = [0] * len(programs)
    arrived: set[tuple[str, int]] = set()
    moved = True
    while moved:
        moved = False
        for k, program in enumerate(programs):
            while position[k] < len(program.instructions):
                step = program.instructions[position[k]]
                if isinstance(step, Receive) and (step.value, k) not in arrived:
                    break
                if isinstance(step, Send):
                    arrived.update((step.value, reader) for reader in step.readers)
                position[k] += 1
                moved = True
    stuck = [
        f"component {k} at {program.instructions[position[k]]}"
        for k, program in enumerate(programs)
        if position[k] < len(program.instructions)
    ]
    if stuck:
        raise PlanError("these programs wait for each other forever: " + "; ".join(stuck))
