"""Placements of any form, for devices whose memories no chain and no fold fits: descent over single moves and swaps."""

from __future__ import annotations

import numpy as np

from partitioner.search.arrays import Ints
from partitioner.search.devices import Devices
from partitioner.search.evaluate import Evaluation, evaluate
from partitioner.search.mode import Mode
from partitioner.search.problem import Problem

SWEEPS = 30
Rank = tuple[float, float, float]


def search_placements(problem: Problem, devices: Devices, mode: Mode, byte_weight: float) -> Ints | None:
    """(n,) component of each node, component k on device k; None if nothing that fits the memories was found.

    Nodes in order of their memory go where most room is left; then single nodes move, or two change places, as long as
    (bytes above the memories, T, staleness + byte_weight x bytes) gets less, in this order. No optimum is claimed.
    """
    held = np.unique(problem.reading_item)
    if problem.size < len(devices) or problem.item_bytes[held].sum() > sum(devices.memory_bytes):
        return None
    place = _roomiest(problem, devices)
    rank = _rank(evaluate(problem, place, devices, mode), devices, byte_weight)
    for _ in range(SWEEPS):
        before = rank
        for v in range(problem.size):
            for trial in _neighbours(place, v, len(devices)):
                other = _rank(evaluate(problem, trial, devices, mode), devices, byte_weight)
                if other < rank:
                    place, rank = trial, other
        if rank == before:
            break
    return place if rank[0] == 0 else None


def _roomiest(problem: Problem, devices: Devices) -> Ints:
    """Largest node first, each on the device with the most room left; each device gets one."""
    size = np.zeros(problem.size)
    np.add.at(size, problem.reading_node, problem.item_bytes[problem.reading_item].astype(np.float64))
    room = np.minimum(np.array(devices.memory_bytes), size.sum() * 2 + 1)
    place = np.full(problem.size, -1, dtype=np.int64)
    for rank, v in enumerate(np.argsort(-size, kind="stable").tolist()):
        device = int(np.argmax(room)) if rank >= len(devices) else int(np.argsort(-room, kind="stable")[0])
        empty = [d for d in range(len(devices)) if not np.any(place == d)]
        if problem.size - rank <= len(empty):
            device = empty[0]
        place[v] = device
        room[device] -= size[v]
    return place


def _neighbours(place: Ints, v: int, count: int) -> list[Ints]:
    """Placements in which v is elsewhere, or has changed places with a later node; no component is emptied."""
    found = []
    alone = np.count_nonzero(place == place[v]) == 1
    for k in range(count):
        if k != place[v] and not alone:
            moved = place.copy()
            moved[v] = k
            found.append(moved)
    for w in range(v + 1, len(place)):
        if place[w] != place[v]:
            swapped = place.copy()
            swapped[v], swapped[w] = place[w], place[v]
            found.append(swapped)
    return found


def _rank(figures: Evaluation, devices: Devices, byte_weight: float) -> Rank:
    excess = sum(max(0.0, c.memory_bytes - devices.memory_bytes[c.device]) for c in figures.components)
    score = figures.staleness + byte_weight * (figures.bytes_per_step + figures.repeated_bytes)
    return excess, figures.step_ms, score
