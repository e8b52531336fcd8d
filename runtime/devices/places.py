"""Places: the devices of all machines, and whether each has the memory that a plan needs there."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from partitioner.plan.plan import Plan
from partitioner.plan.ranks import seat_of
from partitioner.plan.records import PredictedComponent
from runtime.devices.memory import SHARED_REGION_BYTES, free_bytes
from runtime.errors import PlanMismatch

_LOGGER = logging.getLogger("runtime")


@dataclass(frozen=True)
class Place:
    """A device of a machine. machine: "" for the driver's own. free_bytes: its free memory, None where unknown.

    A device has one name, with_index's, so that two ranks on it have equal places.
    """

    machine: str
    device: str
    free_bytes: int | None = field(compare=False)

    def __str__(self) -> str:
        return f"{self.device} of {self.machine}" if self.machine else self.device


def local_places(devices: Sequence[str]) -> list[Place]:
    """rank -> its place, for ranks on devices of this machine."""
    named = [with_index(device) for device in devices]
    free = {device: free_bytes(device) for device in named}
    return [Place("", device, free[device]) for device in named]


def with_index(device: str) -> str:
    """The one name of a device of this machine: that of "cuda" has the current GPU's index, that of the cpu has none.

    >>> with_index("cpu:0"), with_index("cuda:1")
    ('cpu', 'cuda:1')
    """
    named = torch.device(device)
    if named.type == "cpu":
        return "cpu"
    if named.type == "cuda" and named.index is None:
        return f"cuda:{torch.cuda.current_device()}"
    return device


def check_count(plans: Iterable[Plan], devices: Sequence[str]) -> None:
    """PlanMismatch where there is not one device for each rank of every plan."""
    for plan in plans:
        if len(devices) != plan.ranks:
            raise PlanMismatch(
                f"the plan needs {plan.ranks} devices ({plan.branches} branches of {plan.components} "
                f"components), got {len(devices)}: {', '.join(devices)}; make a plan with --devices {len(devices)}"
            )


def needed_bytes(
    plans: Sequence[Plan],
    places: Sequence[Place],
    *,
    held_on: Sequence[str | None],
    one_process: bool = True,
    graphs: bool = False,
) -> dict[Place, int]:
    """The memory that ranks still need at each place, as the plans predict it.

    Ranks on GPUs, if processes, also share memory in regions, one towards every other rank, whatever they send there.

    Args:
        plans: by denoiser, the plans that the ranks will run.
        places: rank -> its place.
        held_on: by denoiser, the driver's device that holds its parameters already; None where it has none.
        one_process: whether all ranks on that device use those parameters as they are, and pass messages on as they
            are; else the driver's does alone, and ranks on GPUs copy messages from slots.
        graphs: whether ranks on GPUs also need the buffers of CUDA graphs.
    """
    needed: dict[Place, int] = {}
    for rank, place in enumerate(places):
        on_gpu = place.device.startswith("cuda")
        regions = 0 if one_process or not on_gpu else len(places) - 1
        needed[place] = needed.get(place, 0) + regions * SHARED_REGION_BYTES
        for plan, held in zip(plans, held_on, strict=True):
            branch, component = seat_of(rank, plan.components)
            predicted = plan.predicted.components[branch * plan.components + component]
            there = place == Place("", str(held), None) and (rank == 0 or one_process)
            needed[place] += predicted.memory_bytes - there * predicted.parameter_bytes
            if one_process or not on_gpu:
                needed[place] -= predicted.slot_bytes
            if graphs and on_gpu:
                needed[place] += _graph_bytes(plan, predicted)
    return needed


def _graph_bytes(plan: Plan, predicted: PredictedComponent) -> int:
    if predicted.graph_bytes is not None:
        return predicted.graph_bytes
    return (predicted.receive_bytes + predicted.send_bytes) // plan.calls_of_branch  # at least, of an earlier release


def room_for_graphs(
    plans: Sequence[Plan],
    places: Sequence[Place],
    *,
    held_on: Sequence[str | None],
    wanted: bool | None,
    one_process: bool = True,
) -> bool:
    """Check that every place has the memory that its ranks need, and say whether that is enough with CUDA graphs.

    Args:
        plans, places, held_on, one_process: see ``needed_bytes``.
        wanted: whether GPUs are to replay graphs; None: where there is room for their buffers.

    Raises:
        PlanMismatch: a place has too little free memory.
    """
    check = partial(check_memory, plans, places, held_on=held_on, one_process=one_process)
    if wanted is not None:
        check(graphs=wanted)
        return wanted
    check()
    try:
        check(graphs=True)
    except PlanMismatch as error:
        _LOGGER.warning("no CUDA graphs are used, for there is no room for their buffers: %s", error)
        return False
    return True


def check_memory(
    plans: Sequence[Plan],
    places: Sequence[Place],
    *,
    held_on: Sequence[str | None],
    one_process: bool = True,
    graphs: bool = False,
) -> None:
    """Check that every place has the memory that the plans predict for its ranks together.

    Args:
        plans, places, held_on, one_process, graphs: see ``needed_bytes``.

    Raises:
        PlanMismatch: a place has too little free memory; the message has the numbers.
    """
    needed = needed_bytes(plans, places, held_on=held_on, one_process=one_process, graphs=graphs)
    ranks_on: dict[Place, list[int]] = {}
    for rank, place in enumerate(places):
        ranks_on.setdefault(place, []).append(rank)
    for place, ranks in ranks_on.items():
        if place.free_bytes is not None and needed[place] > place.free_bytes:
            names = ", ".join(f"rank {rank}" for rank in ranks)
            raise PlanMismatch(
                f"{names} on {place} need {needed[place] / 1e9:.1f} GB by the plan, and {place} has "
                f"{place.free_bytes / 1e9:.1f} GB free; free some, use more devices, or make a plan with --memory-limit"
            )
