"""Programs: printed ones as literals; on random graphs and placements, executed with plain numbers."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitioner.errors import PlanError
from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Input, Node, Parameter, Ref, Role, TensorMeta
from partitioner.plan.boundaries import BoundaryTensor, find_boundaries
from partitioner.plan.build_programs import build_programs
from partitioner.plan.deadlock import check_programs
from partitioner.plan.hoisted import Hoisted
from partitioner.plan.preamble import build_preamble
from partitioner.plan.program import Compute, Program, Receive, Send

SCALAR = TensorMeta((1,), (1,), "float32")


def node(name: str, *reads: str, role: Role = Role.LATENT, group: int = -1, outputs: int = 1) -> Node:
    """A node that adds what it reads."""
    return Node(name, f"m/{name}.0", "sum", tuple(Ref(r) for r in reads), (), "m", role, (SCALAR,) * outputs, group)


def graph_of(nodes: Sequence[Node], result: str, parameters: Sequence[str] = ()) -> TracedGraph:
    """x: the latent, t: the timestep, c: the prompt."""
    roles = {"x": Role.LATENT, "t": Role.TIMESTEP, "c": Role.PROMPT}
    return TracedGraph(
        model="numbers",
        class_name="Numbers",
        inputs=tuple(Input(name, SCALAR, role) for name, role in roles.items()),
        literals=(),
        parameters=tuple(Parameter(name, f"m.{name}", SCALAR) for name in parameters),
        nodes=tuple(nodes),
        results=(Ref(result),),
    )


def printed(programs: Sequence[Program]) -> str:
    return "\n".join(map(str, programs))


# ---- literal programs


def test_a_chain_cut_once() -> None:
    graph = graph_of([node("a", "x", "w"), node("b", "a"), node("c1", "b", "v"), node("d", "c1")], "d", ["w", "v"])
    programs = build_programs(graph, {"a": 0, "b": 0, "c1": 1, "d": 1}, 2)
    assert printed(programs) == (
        "component 0: 1 parameters, inputs x\n"
        "  Compute a .. b (2 nodes)\n"
        "  Send %b to 1\n"
        "component 1: 1 parameters, inputs none\n"
        "  Receive %b from 0\n"
        "  Compute c1 .. d (2 nodes)"
    )
    assert programs[0].instructions[0] == Compute(("a", "b"), reads=("x", "w"), keeps=("b",), drops=("x", "w"))
    assert programs[1].results == ("d",)
    assert find_boundaries(graph, {"a": 0, "b": 0, "c1": 1, "d": 1}) == (BoundaryTensor("b", 0, (1,)),)


def test_a_fold_receives_before_the_first_reader_and_sends_right_after_the_producer() -> None:
    nodes = [node("first", "x"), node("skip", "first"), node("inner", "first"), node("deep", "inner"),
             node("last", "deep", "skip")]  # fmt: skip
    placement = {"first": 1, "skip": 1, "inner": 0, "deep": 0, "last": 1}
    assert printed(build_programs(graph_of(nodes, "last"), placement, 2)) == (
        "component 0: 0 parameters, inputs none\n"
        "  Receive %first from 1\n"
        "  Compute inner .. deep (2 nodes)\n"
        "  Send %deep to 1\n"
        "component 1: 0 parameters, inputs x\n"
        "  Compute first .. first (1 nodes)\n"
        "  Send %first to 0\n"
        "  Compute skip .. skip (1 nodes)\n"
        "  Receive %deep from 0\n"
        "  Compute last .. last (1 nodes)"
    )


def test_a_value_with_several_readers_is_sent_once_and_received_once_by_each() -> None:
    nodes = [node("a", "x"), node("b", "a"), node("c1", "a", "b"), node("d", "a", "b", "c1"), node("e", "a", "d")]
    placement = {"a": 0, "b": 1, "c1": 1, "d": 2, "e": 2}
    programs = build_programs(graph_of(nodes, "e"), placement, 3)
    assert [step for step in programs[0].instructions if isinstance(step, Send)] == [Send("a", (1, 2))]
    for program in programs[1:]:
        assert [step for step in program.instructions if isinstance(step, Receive) and step.value == "a"] == [
            Receive("a", 0)
        ]


def test_storage_that_is_written_to_is_sent_after_the_last_write() -> None:
    nodes = [node("room", "x", group=0), node("view", "room", group=0), node("write", "view", "x", group=0),
             node("after", "x"), node("reader", "room", "after")]  # fmt: skip
    programs = build_programs(graph_of(nodes, "reader"), {n.name: int(n.name == "reader") for n in nodes}, 2)
    assert [str(step) for step in programs[0].instructions] == [
        "Compute room .. write (3 nodes)", "Send %room to 1", "Compute after .. after (1 nodes)", "Send %after to 1",
    ]  # fmt: skip


def test_what_does_not_depend_on_the_latent_is_computed_by_whoever_reads_it() -> None:
    nodes = [node("fixed", "w", role=Role.CONSTANT), node("mood", "c", role=Role.PROMPT),
             node("time", "t", role=Role.TIMESTEP), node("a", "x", "fixed", "time"),
             node("b", "a", "time", "mood")]  # fmt: skip
    graph = graph_of(nodes, "b", ["w"])
    programs = build_programs(graph, {"a": 0, "b": 1}, 2)
    assert programs[0].hoisted == Hoisted(constant=("fixed",), prompt=(), timestep=("time",))
    assert programs[1].hoisted == Hoisted(constant=(), prompt=("mood",), timestep=("time",))
    assert (programs[0].inputs, programs[1].inputs) == (("x", "t"), ("t", "c"))
    assert (programs[0].parameters, programs[1].parameters) == (("w",), ())
    assert build_preamble(graph, {"a": 0, "b": 1}, 2).values == ()


def test_all_that_a_write_to_hoisted_storage_rests_on_is_computed_before_it() -> None:
    nodes = [node("number", role=Role.CONSTANT), node("copy", "number", role=Role.CONSTANT),
             node("mask", role=Role.CONSTANT, group=0), node("write", "mask", "copy", role=Role.CONSTANT, group=0),
             node("a", "x"), node("b", "a", "mask")]  # fmt: skip
    (program,) = build_programs(graph_of(nodes, "b"), {"a": 0, "b": 0}, 1)
    assert program.hoisted.constant == ("number", "copy", "mask", "write")


def test_what_rests_on_parameters_and_is_shared_is_the_drivers_and_travels() -> None:
    nodes = [node("time", "t", "w", role=Role.TIMESTEP), node("bent", "time", role=Role.TIMESTEP),
             node("own", "bent", "v", role=Role.TIMESTEP), node("a", "x", "bent", "own"),
             node("b", "a", "bent")]  # fmt: skip
    graph = graph_of(nodes, "b", ["w", "v"])
    placement = {"a": 0, "b": 1}
    preamble = build_preamble(graph, placement, 2)
    assert (preamble.values, preamble.inputs, preamble.parameters) == (("bent",), ("t",), ("w",))
    assert preamble.hoisted.timestep == ("time", "bent")
    programs = build_programs(graph, placement, 2)
    assert programs[0].hoisted.timestep == ("own",), "what one component alone needs stays with it"
    assert [program.parameters for program in programs] == [("v",), ()]
    assert [program.inputs for program in programs] == [("x", "bent"), ("bent",)]


# ---- refusals


@pytest.mark.parametrize(
    ("nodes", "placement", "message"),
    [
        ([node("a", "x"), node("b", "a")], {"a": 1, "b": 0}, "made by component 0; it must be the last, 1"),
        ([node("a", "x"), node("b", "a")], {"a": 1, "b": 1}, "component 0 has no node"),
        (
            [node("a", "x", group=0), node("w", "a", group=0), node("b", "a")],
            {"a": 0, "w": 1, "b": 1},
            r"nodes up to m/w\.0 write to one storage and must not be cut apart",
        ),
        ([node("a", "x", outputs=2), node("b", "a")], {"a": 0, "b": 1}, "is cut off from its readers, but is not one"),
        ([node("b", "t", role=Role.TIMESTEP)], {}, "does not depend on the latent; there is nothing to split"),
    ],
)
def test_placements_that_no_program_can_run_are_refused(
    nodes: list[Node], placement: dict[str, int], message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        build_programs(graph_of(nodes, "b"), placement, 2)


def test_programs_that_wait_for_each_other_are_shown_where_they_are_stuck() -> None:
    def program(component: int, *steps: Receive | Send) -> Program:
        return Program(component, Hoisted((), (), ()), steps, (), (), ())

    check_programs([program(0, Send("a", (1,)), Receive("b", 1)), program(1, Receive("a", 0), Send("b", (0,)))])
    with pytest.raises(PlanError) as caught:
        check_programs([program(0, Receive("b", 1), Send("a", (1,))), program(1, Receive("a", 0), Send("b", (0,)))])
    assert str(caught.value) == (
        "these programs wait for each other forever: component 0 at Receive %b from 1; component 1 at Receive %a from 0"
    )


# ---- any graph, any placement


@st.composite
def cases(draw: st.DrawFn) -> tuple[TracedGraph, dict[str, int], int]:
    """A graph of up to 25 nodes of all roles, on up to 4 components in any way."""
    shuffle = random.Random(draw(st.integers(0, 2**32)))
    components = draw(st.integers(1, 4))
    parameters = [f"w{i}" for i in range(3)]
    roles = {"x": Role.LATENT, "t": Role.TIMESTEP, "c": Role.PROMPT, **dict.fromkeys(parameters, Role.CONSTANT)}
    nodes = []
    for index in range(draw(st.integers(components, 25))):
        reads = shuffle.sample(sorted(roles), min(len(roles), shuffle.randint(1, 3)))
        made = node(f"n{index}", *reads, role=max(roles[name] for name in reads))
        roles[made.name] = made.role
        nodes.append(made)
    for index in range(components):  # enough latent nodes, and a result that is one
        nodes.append(node(f"z{index}", "x", nodes[-1].name))
    latent = [made.name for made in nodes if made.role is Role.LATENT]
    placement = {name: shuffle.randrange(components) for name in latent}
    placement |= {f"z{index}": index for index in range(components)}
    return graph_of(nodes, nodes[-1].name, parameters), placement, components


def add(nodes: Mapping[str, Node], names: Sequence[str], values: Mapping[str, int]) -> dict[str, int]:
    """The value of each node: a number that depends on the order and on all that it reads."""
    known = dict(values)
    for name in names:
        known[name] = sum((3 + i) * known[read] for i, read in enumerate(nodes[name].reads)) % 1_000_003
    return {name: known[name] for name in names}


@given(cases())
def test_programs_executed_give_what_the_graph_gives(case: tuple[TracedGraph, dict[str, int], int]) -> None:
    """Each keeps nothing but what it was told to keep, and gets nothing but what it was sent."""
    graph, placement, components = case
    given_values = {"x": 5, "t": 7, "c": 11, "w0": 13, "w1": 17, "w2": 19}
    nodes = graph.node_by_name
    expected = add(nodes, [n.name for n in graph.nodes], given_values)
    preamble = build_preamble(graph, placement, components)
    reads = {name: given_values[name] for name in (*preamble.inputs, *preamble.parameters)}
    sent = {k: v for k, v in add(nodes, preamble.hoisted.names, reads).items() if k in preamble.values}

    programs = build_programs(graph, placement, components)
    values: list[dict[str, int]] = []
    for program in programs:
        own = {name: {**given_values, **sent}[name] for name in (*program.inputs, *program.parameters)}
        values.append({**own, **add(nodes, program.hoisted.names, own)})
    position, arrived = [0] * components, {}
    while any(position[k] < len(programs[k].instructions) for k in range(components)):
        for k, program in enumerate(programs):
            while position[k] < len(program.instructions):
                step = program.instructions[position[k]]
                if isinstance(step, Receive):
                    if (step.value, k) not in arrived:
                        break
                    assert placement[step.value] == step.source
                    values[k][step.value] = arrived.pop((step.value, k))
                elif isinstance(step, Send):
                    for reader in step.readers:
                        assert (step.value, reader) not in arrived, "sent twice"
                        arrived[step.value, reader] = values[k][step.value]
                else:
                    made = add(nodes, step.nodes, {name: values[k][name] for name in step.reads})
                    values[k] |= {name: made[name] for name in step.keeps}
                    for name in step.drops:
                        del values[k][name]
                position[k] += 1
    assert arrived == {}, "sent and not received"
    result = graph.result_values[0]
    assert values[components - 1][result] == expected[result]


@given(cases())
def test_hoisted_nodes_that_rest_on_parameters_are_computed_in_one_place(
    case: tuple[TracedGraph, dict[str, int], int],
) -> None:
    graph, placement, components = case
    places = [program.hoisted.names for program in build_programs(graph, placement, components)]
    places.append(build_preamble(graph, placement, components).hoisted.names)
    rests = set(graph.parameter_by_name)
    for made in graph.nodes:
        if rests.intersection(made.reads):
            rests.add(made.name)
            if made.role in (Role.PROMPT, Role.TIMESTEP):
                assert sum(made.name in names for names in places) <= 1
