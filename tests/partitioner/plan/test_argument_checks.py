"""check_arguments: each thing that makes no call is refused with its place in the file; so is it by Plan.parse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from partitioner.errors import PlanError
from partitioner.plan.argument_checks import MOST_INPUT_BYTES, check_arguments
from partitioner.plan.plan import Plan
from partitioner.plan.records import PlanContainer, PlanInput, PlanLiteral

GOLDEN = Path(__file__).with_name("golden.plan.json")


def given(path: str = "x", shape: tuple[int, ...] = (2, 4), dtype: str = "float32", role: Any = "latent") -> PlanInput:
    return PlanInput(path=path, shape=shape, dtype=dtype, role=role)


TIME = given("t", (), role="timestep")
LARGE = given("words", (1, 2**29), role="prompt")  # 2 GiB
LIST = PlanContainer(path="more", kind="list")


@pytest.mark.parametrize(
    ("inputs", "literals", "containers", "alike", "expected"),
    [
        ([TIME], (), (), (), "inputs: none has the role latent"),
        ([TIME, given(dtype="int64")], (), (), (), "inputs.1.dtype: int64, and its role is latent"),
        ([given(dtype="bool")], (), (), (), "inputs.0.dtype: bool"),
        ([given(), TIME, given()], (), (), (), "inputs.2.path: 'x' stands twice, in inputs.0 too"),
        ([given()], [PlanLiteral(path="x", value=1)], (), (), "literals.0.path: 'x' stands twice, in inputs.0 too"),
        ([given()], (), [LIST, LIST], (), "containers.1.path: 'more' stands twice, in containers.0 too"),
        ([given(shape=(2**40,) * 16)], (), (), (), "inputs.0.shape: with [1099511627776, "),
        (
            [given(), *(LARGE.model_copy(update={"path": f"p{n}"}) for n in range(9))],
            (),
            (),
            (),
            "inputs.8.shape: with",
        ),
        ([given()], (), (), ["y"], "alike.0: 'y' is the path of no input"),
    ],
)
def test_what_makes_no_call_is_refused_with_its_place(
    inputs: Any, literals: Any, containers: Any, alike: Any, expected: str
) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 # the message is compared as it is
        check_arguments(inputs, literals, containers, alike)
    assert str(caught.value).startswith(expected)
    assert len(str(caught.value)) < 600


def test_calls_of_any_size_that_memory_could_hold_pass() -> None:
    check_arguments([given(shape=(MOST_INPUT_BYTES // 4,)), given("y", (0, 2**40))], (), [LIST], ["y"])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"role": "prompt"}, "inputs: none has the role latent"),
        ({"dtype": "int64"}, "inputs.0.dtype: int64"),
        ({"shape": [2**20, 2**20, 2**20]}, "inputs.0.shape: with [1048576, 1048576, 1048576]"),
        ({"path": "sample.0"}, None),
    ],
)
def test_a_plan_file_is_refused_so(changes: dict[str, Any], expected: str | None, tmp_path: Path) -> None:
    document = json.loads(GOLDEN.read_text())
    document["inputs"][0].update(changes)
    file = tmp_path / "mine.plan.json"
    file.write_text(json.dumps(document))
    if expected is None:  # whether there is such an argument, the denoiser says
        assert Plan.load(file).inputs[0].path == changes["path"]
        return
    with pytest.raises(PlanError) as caught:
        Plan.load(file)
    assert str(caught.value).startswith(f"{file} is no valid plan: {expected}")


@pytest.mark.parametrize("below", [{"path": "sample.deep", "value": 1}, {"path": "sample.0.1", "value": None}])
def test_a_path_below_a_tensor_is_refused(below: dict[str, Any]) -> None:
    document = json.loads(GOLDEN.read_text())
    assert document["inputs"][0]["path"] == "sample"
    with pytest.raises(PlanError, match=r"argument sample\S* is both a value and a container"):
        Plan.parse({**document, "literals": [*document["literals"], below]})
    with pytest.raises(PlanError, match=r"argument sample\S* is both a value and a container"):
        Plan.parse({**document, "containers": [{"path": below["path"], "kind": "list"}]})
