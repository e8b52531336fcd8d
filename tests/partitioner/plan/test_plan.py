"""Plans: what they keep, and their placement on other graphs. No torch needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from partitioner.errors import PlanError
from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Node
from partitioner.plan.plan import Plan
from partitioner.plan.ranks import rank_of, seat_of
from partitioner.plan.records import DriverModule
from tests.support.chain_plans import chain, document, make_plan


def test_a_plan_keeps_the_structure_of_the_arguments(tmp_path: Path) -> None:
    literals = (("layers.0", 1), ("layers.1", None))
    graph = replace(chain(), literals=literals, containers=(("layers", "list"), ("rest", "tuple"), ("none", "dict")))
    make_plan(graph).save(tmp_path / "a.json")
    plan = Plan.load(tmp_path / "a.json")
    assert plan.example_arguments({"sample": 0}) == {"sample": 0, "layers": [1, None], "rest": (), "none": {}}
    assert plan.same_inputs(graph)
    assert not plan.same_inputs(replace(graph, containers=()))
    assert "containers" not in document()  # so that files without such arguments are what they were


def test_a_plan_says_how_guidance_is_done_where_that_is_known(tmp_path: Path) -> None:
    make_plan(chain()).model_copy(update={"guidance_style": "two-calls"}).save(tmp_path / "a.json")
    assert Plan.load(tmp_path / "a.json").guidance_style == "two-calls"
    assert "guidance_style" not in document()  # so that files without it are what they were
    with pytest.raises(PlanError, match="guidance_style"):
        Plan.parse(document() | {"guidance_style": "both"})


def test_a_plan_says_what_the_pipeline_runs_beside_it(tmp_path: Path) -> None:
    control = DriverModule(name="controlnet", class_name="ControlNetModel", parameters=3, parameter_bytes=6)
    make_plan(chain(), driver_modules=[control]).save(tmp_path / "a.json")
    assert Plan.load(tmp_path / "a.json").driver_modules == (control,)
    assert "driver_modules" not in document()  # so that files without it are what they were


def test_arguments_that_contradict_each_other_are_refused() -> None:
    changed = document() | {"containers": [{"path": "sample", "kind": "list"}]}
    with pytest.raises(PlanError, match="argument sample is both a value and a container"):
        Plan.parse(changed)


def test_streams_and_shares_are_in_the_file_only_where_there_are_any() -> None:
    plain = document(make_plan(chain(), 1, branches=3))
    assert not {"streams", "branch_rows", "calls_per_step"} & set(plain)
    plan = make_plan(chain(), 1, branches=4, streams=2, branch_rows=(5, 3), calls_per_step=3)
    written = document(plan)
    assert (written["streams"], written["branch_rows"], written["calls_per_step"]) == (2, [5, 3], 3)
    assert Plan.parse(written) == plan


def test_ranks_are_numbered_from_the_output() -> None:
    assert [rank_of(b, k, 3) for b in (0, 1) for k in (0, 1, 2)] == [2, 1, 0, 5, 4, 3]
    assert rank_of(0, 3, 4) == 0
    assert [seat_of(rank_of(b, k, 3), 3) for b in (0, 1) for k in (0, 1, 2)] == [
        (b, k) for b in (0, 1) for k in (0, 1, 2)
    ]


def test_the_plans_own_graph_passes_and_keeps_its_placement() -> None:
    graph = chain()
    plan = make_plan(graph)
    plan.check(graph)
    assert list(plan.place(graph).values()) == list(plan.placement.values())


def test_another_model_is_refused_with_its_first_differences() -> None:
    plan = make_plan(chain())
    with pytest.raises(PlanError) as caught:
        plan.check(chain(layers=7, model="other"))
    assert "blocks.6.proj/linear.0" in str(caught.value)
    with pytest.raises(PlanError, match="shapes"):
        Plan.parse({**document(plan), "fingerprint": "0" * 64}).check(chain())


@pytest.mark.parametrize("kind", ["node missing", "node unknown", "boundary missing"])
def test_a_plan_that_does_not_cover_its_graph_is_refused(kind: str) -> None:
    base = document()
    if kind == "node missing":
        del base["placement"]["blocks.5/gelu.0"]
    elif kind == "node unknown":
        base["placement"]["blocks.9/gelu.0"] = 2
    else:
        del base["boundaries"][0]
    with pytest.raises(PlanError, match="boundaries" if kind == "boundary missing" else "node"):
        Plan.parse(base).check(chain())


def test_another_batch_keeps_the_placement() -> None:
    plan = make_plan(chain())
    other = chain(rows=5)
    plan.check(other)
    assert list(plan.place(other).values()) == list(plan.placement.values())


@pytest.mark.parametrize("mode", ["lookahead", "async"])
def test_nodes_of_a_lora_follow_the_layer_that_they_belong_to(mode: str) -> None:
    plan = make_plan(chain(), mode=mode)
    placed = plan.place(chain(extra=6))
    for layer in range(6):
        expected = plan.placement[f"blocks.{layer}.proj/linear.0"]
        assert [placed[f"{name}{layer}"] for name in ("linear", "lora", "sum")] == [expected] * 3
        assert placed[f"gelu{layer}"] == plan.placement[f"blocks.{layer}/gelu.0"]


def test_a_node_that_the_plan_does_not_know_never_sends_back() -> None:
    plan = make_plan(chain(layers=12), components=12)
    placed = plan.place(chain(layers=12, extra=12))
    assert list(placed.values()) == sorted(placed.values())


@pytest.mark.parametrize("layers", [3, 12])
def test_a_graph_with_too_few_or_too_many_nodes_is_refused(layers: int) -> None:
    with pytest.raises(PlanError, match="make a plan for it"):
        make_plan(chain()).place(chain(layers=layers, rows=3))


def test_what_cannot_be_cut_apart_is_refused() -> None:
    graph = chain()
    grouped = TracedGraph(**{
        **{name: getattr(graph, name) for name in graph.__dataclass_fields__},
        "nodes": tuple(
            Node(n.name, n.key, n.target, n.args, n.kwargs, n.module, n.role, n.outputs, 0 if i in (3, 4) else -1)
            for i, n in enumerate(graph.nodes)
        ),
    })  # fmt: skip
    with pytest.raises(PlanError, match="cut apart"):
        make_plan(grouped)
    placed = make_plan(graph).place(grouped)
    assert placed[grouped.nodes[3].name] == placed[grouped.nodes[4].name]
