"""Whether devices have what a plan needs."""

from __future__ import annotations

import pytest

from partitioner.plan.plan import Plan
from runtime.devices.memory import SHARED_REGION_BYTES
from runtime.devices.places import Place, check_memory, local_places, room_for_graphs
from runtime.errors import PlanMismatch
from tests.support.engines import toy, toy_plan

GB = 10**9


def plan_needing(*gigabytes: int, parameters: int = 0, branches: int = 1) -> Plan:
    """A plan whose components need so much memory; of it ``parameters`` GB are parameters."""
    plan = toy_plan(toy(), len(gigabytes) // branches, branches=branches)
    components = tuple(
        predicted.model_copy(update={"memory_bytes": need * GB, "parameter_bytes": parameters * GB})
        for predicted, need in zip(plan.predicted.components, gigabytes, strict=True)
    )
    return plan.model_copy(update={"predicted": plan.predicted.model_copy(update={"components": components})})


def places(*free: int | None, machine: str = "", beside: int = 0) -> list[Place]:
    """A device of its own per rank, with so many GB free, and so many bytes beside them."""
    return [Place(machine, f"cuda:{i}", None if f is None else f * GB + beside) for i, f in enumerate(free)]


def test_every_rank_needs_what_its_component_needs() -> None:
    """Rank 0 has the last component."""
    plan = plan_needing(3, 5)
    check_memory([plan], places(5, 3), held_on=[None])
    for free, names in (
        ((4, 3), r"rank 0 on cuda:0 need 5\.0 GB by the plan, and cuda:0 has 4\.0 GB free"),
        (
            (5, 2),
            r"rank 1 on cuda:1 need 3\.0 GB .* has 2\.0 GB free; .*--memory-limit",
        ),
    ):
        with pytest.raises(PlanMismatch, match=names):
            check_memory([plan], places(*free), held_on=[None])


def changed(plan: Plan, **figures: int | None) -> Plan:
    """The plan with other figures of every component."""
    components = tuple(each.model_copy(update=figures) for each in plan.predicted.components)
    return plan.model_copy(update={"predicted": plan.predicted.model_copy(update={"components": components})})


def test_slots_are_needed_between_processes_on_gpus_only() -> None:
    """Elsewhere readers use messages where they lie, and those are counted."""
    plan = changed(plan_needing(3, 5), message_bytes=2 * GB, slot_bytes=GB)
    check_memory([plan], places(5, 3, beside=SHARED_REGION_BYTES), held_on=[None], one_process=False)
    with pytest.raises(PlanMismatch, match=r"rank 0 on cuda:0 need 5\.0 GB"):
        check_memory([plan], places(4, 3), held_on=[None], one_process=False)
    check_memory([plan], places(4, 2), held_on=[None])
    check_memory([plan], [Place("", "cpu", 6 * GB)] * 2, held_on=[None], one_process=False)


def test_processes_on_gpus_share_a_region_towards_every_other_rank() -> None:
    plans = [plan_needing(1, 1, 1), plan_needing(2, 2, 2)]
    on_one = places(9, beside=6 * SHARED_REGION_BYTES) * 3
    check_memory(plans, on_one, held_on=[None, None], one_process=False)
    with pytest.raises(PlanMismatch, match=r"rank 0, rank 1, rank 2 on cuda:0 need 9\.1 GB"):
        check_memory(plans, places(9, beside=6 * SHARED_REGION_BYTES - 1) * 3, held_on=[None] * 2, one_process=False)
    check_memory(plans, places(9) * 3, held_on=[None] * 2)
    check_memory(plans, [Place("", "cpu", 9 * GB)] * 3, held_on=[None] * 2, one_process=False)


def test_buffers_of_graphs_are_those_of_the_plan() -> None:
    plan = changed(plan_needing(3, 5), graph_bytes=GB)
    check_memory([plan], places(6, 4), held_on=[None], graphs=True)
    with pytest.raises(PlanMismatch, match=r"rank 1 on cuda:1 need 4\.0 GB"):
        check_memory([plan], places(6, 3), held_on=[None], graphs=True)
    check_memory([plan], [Place("", "cpu", 8 * GB)] * 2, held_on=[None], graphs=True)


def test_buffers_of_graphs_need_room_on_gpus(caplog: pytest.LogCaptureFixture) -> None:
    """A plan of an earlier release says what is sent, and not what graphs take."""
    plan = changed(plan_needing(3, 5), receive_bytes=GB, send_bytes=GB)
    room, none = places(7, 5), places(6, 5)
    assert room_for_graphs([plan], room, held_on=[None], wanted=None)
    assert room_for_graphs([plan], room, held_on=[None], wanted=True)
    assert not caplog.records
    assert not room_for_graphs([plan], none, held_on=[None], wanted=None)
    assert "no room for their buffers: rank 0 on cuda:0 need 7.0 GB" in caplog.text
    assert not room_for_graphs([plan], none, held_on=[None], wanted=False)
    with pytest.raises(PlanMismatch, match=r"rank 0 on cuda:0 need 7\.0 GB"):
        room_for_graphs([plan], none, held_on=[None], wanted=True)
    with pytest.raises(PlanMismatch, match=r"rank 0 on cuda:0 need 5\.0 GB"):
        room_for_graphs([plan], places(4, 5), held_on=[None], wanted=None)
    assert room_for_graphs(
        [plan], [Place("", "cpu", 5 * GB), Place("other", "cpu", 3 * GB)], held_on=[None], wanted=None
    )


def test_ranks_on_one_device_share_it() -> None:
    plan = plan_needing(3, 5)
    for free, fits in ((8, True), (7, False), (None, True)):
        shared = places(free) * 2
        if fits:
            check_memory([plan], shared, held_on=[None])
        else:
            with pytest.raises(PlanMismatch, match=r"rank 0, rank 1 on cuda:0 need 8\.0 GB"):
                check_memory([plan], shared, held_on=[None])


def test_a_device_of_another_machine_is_another_place() -> None:
    plan = plan_needing(3, 5)
    check_memory([plan], [Place("", "cpu", 5 * GB), Place("other", "cpu", 3 * GB)], held_on=[None])
    with pytest.raises(PlanMismatch, match=r"rank 1 on cpu of other need 3\.0 GB"):
        check_memory([plan], [Place("", "cpu", 5 * GB), Place("other", "cpu", 2 * GB)], held_on=[None])


def test_parameters_that_are_there_already_need_no_more_memory() -> None:
    """The driver's own, in processes; in one process those of all ranks on the device that holds the denoiser."""
    plan = plan_needing(3, 5, parameters=2)
    check_memory([plan], places(3, 3, beside=SHARED_REGION_BYTES), held_on=["cuda:0"], one_process=False)
    with pytest.raises(PlanMismatch, match=r"rank 1 .* need 3\.0 GB"):
        check_memory([plan], places(3, 2, beside=SHARED_REGION_BYTES), held_on=["cuda:0"], one_process=False)
    with pytest.raises(PlanMismatch, match=r"rank 0, rank 1 on cuda:0 need 6\.0 GB"):
        check_memory([plan], places(5) * 2, held_on=["cuda:0"], one_process=False)
    with pytest.raises(PlanMismatch, match=r"rank 0 on cuda:0 need 5\.0 GB"):
        check_memory([plan], places(3, 3), held_on=["cpu"], one_process=False)
    check_memory([plan], places(4) * 2, held_on=["cuda:0"])
    with pytest.raises(PlanMismatch, match=r"rank 0, rank 1 on cuda:0 need 4\.0 GB"):
        check_memory([plan], places(3) * 2, held_on=["cuda:0"])
    with pytest.raises(PlanMismatch, match=r"rank 0 on cuda:0 need 5\.0 GB"):
        check_memory([plan], places(4, 3), held_on=["cuda:1"])


def test_every_branch_has_its_ranks() -> None:
    plan = plan_needing(1, 2, 3, 4, branches=2)
    check_memory([plan], places(2, 1, 4, 3), held_on=[None])
    for rank, free in enumerate([(1, 1, 4, 3), (2, 0, 4, 3), (2, 1, 3, 3), (2, 1, 4, 2)]):
        with pytest.raises(PlanMismatch, match=f"rank {rank} on"):
            check_memory([plan], places(*free), held_on=[None])


def test_ranks_on_one_device_of_this_machine_have_one_place() -> None:
    one, other, third = local_places(["cpu", "cpu", "meta"])
    assert one == other != third
    assert one.free_bytes == other.free_bytes
    assert third.free_bytes is None


def test_a_device_has_one_place_by_whatever_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks on "cuda" and "cuda:0" share a GPU, and each would fit alone."""
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("runtime.devices.places.free_bytes", lambda device: 7 * GB)
    found = local_places(["cuda", "cuda:0", "cpu:0", "cpu"])
    assert [place.device for place in found] == ["cuda:0", "cuda:0", "cpu", "cpu"]
    with pytest.raises(PlanMismatch, match=r"rank 0, rank 1 on cuda:0 need 8\.0 GB"):
        check_memory([plan_needing(3, 5)], found[:2], held_on=[None])
    check_memory([plan_needing(3, 5, parameters=2)], found[:2], held_on=["cuda:0"])
