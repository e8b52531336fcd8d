"""Files with the plans of several denoisers: what they hold, what is refused, and that a single plan's stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from partitioner.errors import PlanError
from partitioner.plan.pipeline_plans import PipelinePlans, load_plans, plan_schema
from partitioner.plan.plan import Plan
from profiles.json_files import canonical_bytes
from tests.support.chain_plans import chain, make_plan

REPOSITORY = Path(__file__).parents[3]


def two_plans() -> PipelinePlans:
    return PipelinePlans.of({"prior": make_plan(chain()), "decoder": make_plan(chain(4), components=3)})


def test_saving_and_loading_gives_the_same_plans_and_the_same_bytes(tmp_path: Path) -> None:
    plans = two_plans()
    plans.save(tmp_path / "a.json")
    again = load_plans(tmp_path / "a.json")
    assert again == plans
    assert again.canonical == plans.canonical == (tmp_path / "a.json").read_bytes()
    assert (list(plans.plans), plans.ranks) == (["prior", "decoder"], 3)


def test_each_plan_stands_in_the_file_as_in_one_of_its_own(tmp_path: Path) -> None:
    document = json.loads(two_plans().canonical)
    assert list(document) == ["schema_version", "plans"]
    assert document["plans"]["prior"] == json.loads(make_plan(chain()).canonical)
    make_plan(chain()).save(tmp_path / "one.json")
    assert load_plans(tmp_path / "one.json") == make_plan(chain())


def test_the_same_ranks_run_all_plans_of_a_file() -> None:
    with pytest.raises(PlanError, match=r"the plans have others: a has 3, b has 2"):
        PipelinePlans.of({"a": make_plan(chain()), "b": make_plan(chain(), components=2)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plans": {}}, "plans: "),
        ({"plans": []}, "plans: .*got an array of 0"),
        ({"schema_version": 2}, "schema version 2"),
        ({"more": 1}, "more: "),
        ({"plans": {"a": 1, "b": 2}}, r"plans\.a"),
        ({"plans": {"../a": {}, "b": {}}}, r"plans\.\.\./a"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(json.loads(two_plans().canonical) | changes))
    with pytest.raises(PlanError, match=message) as caught:
        load_plans(path)
    assert "\n" not in str(caught.value)


def test_an_error_in_one_of_them_names_its_field(tmp_path: Path) -> None:
    document = json.loads(two_plans().canonical)
    document["plans"]["decoder"]["warmup"] = 0
    (tmp_path / "a.json").write_text(json.dumps(document))
    with pytest.raises(PlanError, match=r"plans\.decoder\.warmup: .*got 0"):
        load_plans(tmp_path / "a.json")


def test_a_file_of_several_is_no_single_plan(tmp_path: Path) -> None:
    two_plans().save(tmp_path / "a.json")
    with pytest.raises(PlanError, match="holds the plans of several denoisers, not one"):
        Plan.load(tmp_path / "a.json")


def test_the_published_schema_is_the_models() -> None:
    """After a wanted change: write canonical_bytes(plan_schema()) to docs/plan.schema.json."""
    assert (REPOSITORY / "docs" / "plan.schema.json").read_bytes() == canonical_bytes(plan_schema())
