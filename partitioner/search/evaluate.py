"""evaluate: every figure of a split from the assignment itself; what the searches find is always checked against it.

It shares no arithmetic with them: it walks the nodes, edges and readings of a Problem one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from partitioner.errors import UsageError
from partitioner.search.arrays import Ints
from partitioner.search.devices import Devices
from partitioner.search.mode import Mode, step_ms
from partitioner.search.problem import KEPT_MESSAGES, Problem


@dataclass(frozen=True, slots=True)
class CutTensor:
    """A boundary tensor: made on component source, read on each of targets (increasing)."""

    value: str
    source: int
    targets: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ComponentFigures:
    """What one component costs on its device. pieces: runs of neighbouring nodes that it consists of.

    work_ms: its nodes and the shared items that they read, on its device; load_ms: with the driver's work, which the
    last node's component has; receive_ms: of what it receives; step_ms: load and receiving, as far as communication
    cannot hide. parameter_bytes is a part of memory_bytes.
    """

    device: int
    nodes: int
    pieces: int
    work_ms: float
    load_ms: float
    receive_ms: float
    step_ms: float
    macs: int
    receive_bytes: int
    send_bytes: int
    parameter_bytes: int
    memory_bytes: int


@dataclass(frozen=True)
class Evaluation:
    """Figures of a placement.

    step_ms: the slowest component's, T. compute_ms: the largest load. lower_bound_ms: no placement on these devices
    computes a step in less. gap: compute_ms over the bound, minus 1. sequential_ms: everything on the fastest device.
    bytes_per_step: each boundary tensor once per reading component. staleness: sum of the weights of the cut edges in
    plain async; 0 in look-ahead, where nothing is stale. repeated_bytes: shared items on top of one copy of each.
    feasible: no device holds more than its memory.
    """

    mode: Mode
    components: tuple[ComponentFigures, ...]
    boundaries: tuple[CutTensor, ...]
    step_ms: float
    compute_ms: float
    lower_bound_ms: float
    gap: float
    sequential_ms: float
    bytes_per_step: int
    staleness: float
    repeated_bytes: int
    feasible: bool

    def __str__(self) -> str:
        lines = [
            f"step {self.step_ms:.4g} ms, bound {self.lower_bound_ms:.4g} ms, gap {self.gap:.2%}, "
            f"{self.bytes_per_step:,} bytes per step, staleness {self.staleness:.4g}"
        ]
        lines += [
            f"component {k} on device {c.device}: {c.nodes} nodes in {c.pieces} pieces, load {c.load_ms:.4g} ms, "
            f"receives {c.receive_bytes:,} bytes in {c.receive_ms:.4g} ms, memory {c.memory_bytes:,} bytes"
            for k, c in enumerate(self.components)
        ]
        return "\n".join(lines)


def scaled(evaluation: Evaluation, factor: float) -> Evaluation:
    """The same figures with times that are so many times as long."""
    return replace(
        evaluation,
        components=tuple(
            replace(
                c,
                work_ms=c.work_ms * factor,
                load_ms=c.load_ms * factor,
                receive_ms=c.receive_ms * factor,
                step_ms=c.step_ms * factor,
            )
            for c in evaluation.components
        ),
        step_ms=evaluation.step_ms * factor,
        compute_ms=evaluation.compute_ms * factor,
        lower_bound_ms=evaluation.lower_bound_ms * factor,
        sequential_ms=evaluation.sequential_ms * factor,
    )


def lower_bound_ms(problem: Problem, devices: Devices) -> float:
    """A bound that no placement's T can beat: max(all work / all speeds, largest inseparable work / fastest device)."""
    return max(problem.total_ms / sum(devices.speeds), problem.largest_ms / max(devices.speeds))


def check_placement(problem: Problem, assignment: Sequence[int] | Ints, components: int) -> None:
    """UsageError unless each node is on one component, each component has a node, and units stay together."""
    placed = [int(k) for k in assignment]
    if len(placed) != problem.size:
        raise UsageError(f"a placement of {problem.size} nodes is needed; got one of {len(placed)}")
    missing = set(range(components)) - set(placed)
    if missing or not all(0 <= k < components for k in placed):
        raise UsageError(f"components 0 to {components - 1} must each have a node; got {sorted(set(placed))} of them")
    for members in problem.units.values():
        if len({placed[v] for v in members}) > 1:
            raise UsageError(
                f"nodes {', '.join(problem.names[v] for v in members)} share storage and cannot be cut apart"
            )


def evaluate(
    problem: Problem,
    assignment: Sequence[int] | Ints,
    devices: Devices,
    mode: Mode,
    device_of: Sequence[int] | None = None,
) -> Evaluation:
    """Figures of the placement in which node v is on component ``assignment[v]``.

    device_of: the device of each component; the same number by default. Raises UsageError as check_placement does, and
    if look-ahead is asked for a placement in which a value goes to an earlier component.
    """
    n = len(devices)
    check_placement(problem, assignment, n)
    place = [int(k) for k in assignment]
    order = list(range(n)) if device_of is None else list(device_of)
    if sorted(order) != list(range(n)):
        raise UsageError(f"each of {n} components needs its own device; got {order}")

    work, macs, nodes, pieces, live = [0.0] * n, [0] * n, [0] * n, [0] * n, [0] * n
    before = -1
    for v, k in enumerate(place):
        work[k] += float(problem.cost_ms[v])
        macs[k] += int(problem.macs[v])
        nodes[k] += 1
        pieces[k] += k != before
        live[k] = max(live[k], int(problem.activation_bytes[v]))
        before = k

    held = {(place[v], i) for i, v in zip(problem.reading_item.tolist(), problem.reading_node.tolist(), strict=True)}
    items, parameters = [0] * n, [0] * n
    for k, i in sorted(held):
        work[k] += float(problem.item_cost_ms[i])
        macs[k] += int(problem.item_macs[i])
        items[k] += int(problem.item_bytes[i])
        parameters[k] += int(problem.item_parameter_bytes[i])

    staleness = 0.0
    targets: dict[int, set[int]] = {}
    producer = problem.value_producer.tolist()
    edges = zip(problem.edge_value.tolist(), problem.edge_reader.tolist(), problem.edge_staleness.tolist(), strict=True)
    for u, v, weight in edges:
        if place[producer[u]] != place[v]:
            staleness += weight
            targets.setdefault(u, set()).add(place[v])
            if mode == "lookahead" and place[producer[u]] > place[v]:
                raise UsageError(
                    f"look-ahead needs a chain, but {problem.value_names[u]} goes from component {place[producer[u]]} "
                    f"back to {place[v]}"
                )
    boundaries = tuple(
        CutTensor(problem.value_names[u], place[producer[u]], tuple(sorted(read)), int(problem.value_bytes[u]))
        for u, read in sorted(targets.items())
    )
    received, messages, sent = [0] * n, [0] * n, [0] * n
    for boundary in boundaries:
        for k in boundary.targets:
            received[k] += boundary.size_bytes
            messages[k] += 1
            sent[boundary.source] += boundary.size_bytes

    figures = []
    for k, d in enumerate(order):
        work_ms = work[k] / devices.speeds[d]
        load_ms = work_ms + (problem.driver_ms / devices.speeds[d] if k == place[-1] else 0.0)
        receive = devices.receive_ms(d, received[k], messages[k])
        figures.append(
            ComponentFigures(
                device=d,
                nodes=nodes[k],
                pieces=pieces[k],
                work_ms=work_ms,
                load_ms=load_ms,
                receive_ms=receive,
                step_ms=step_ms(mode, load_ms, receive),
                macs=macs[k],
                receive_bytes=received[k],
                send_bytes=sent[k],
                parameter_bytes=parameters[k],
                memory_bytes=items[k] + live[k] + KEPT_MESSAGES * received[k],
            )
        )
    once = {i for _, i in held}
    compute = max(c.load_ms for c in figures)
    bound = lower_bound_ms(problem, devices)
    return Evaluation(
        mode=mode,
        components=tuple(figures),
        boundaries=boundaries,
        step_ms=max(c.step_ms for c in figures),
        compute_ms=compute,
        lower_bound_ms=bound,
        gap=compute / bound - 1 if bound > 0 else 0.0,
        sequential_ms=problem.total_ms / max(devices.speeds),
        bytes_per_step=sum(received),
        staleness=0.0 if mode == "lookahead" else staleness,
        repeated_bytes=sum(items) - sum(int(problem.item_bytes[i]) for i in once),
        feasible=all(c.memory_bytes <= devices.memory_bytes[c.device] for c in figures),
    )
