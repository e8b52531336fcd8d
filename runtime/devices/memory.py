"""Memory: whether the devices have what a plan says that its ranks need, what a process has, and giving it back."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn import functional

from partitioner.plan.plan import Plan
from partitioner.plan.ranks import seat_of
from runtime.errors import PlanMismatch


@dataclass(frozen=True)
class Place:
    """A device of a machine ("" is the driver's), and its free memory; None where nobody says."""

    machine: str
    device: str
    free_bytes: int | None = field(compare=False)

    def __str__(self) -> str:
        return f"{self.device} of {self.machine}" if self.machine else self.device


def local_places(devices: Sequence[str]) -> list[Place]:
    """rank -> its place, for ranks on devices of this machine."""
    free = {device: free_bytes(device) for device in devices}
    return [Place("", device, free[device]) for device in devices]


def check_memory(plan: Plan, places: Sequence[Place], *, held_on: str | None) -> None:
    """PlanMismatch where a place has less free memory than the plan predicts for its ranks, together.

    places: rank -> place. held_on: the driver's device that holds the denoiser's parameters already, which ranks on
    it in the driver's process use as they are; None where every rank but the driver's needs its own copy.
    """
    needed: dict[Place, int] = {}
    ranks_on: dict[Place, list[int]] = {}
    for rank, place in enumerate(places):
        branch, component = seat_of(rank, plan.components)
        predicted = plan.predicted.components[branch * plan.components + component]
        there = place.device == held_on or (held_on is None and rank == 0)
        needed[place] = needed.get(place, 0) + predicted.memory_bytes - there * predicted.parameter_bytes
        ranks_on.setdefault(place, []).append(rank)
    for place, ranks in ranks_on.items():
        if place.free_bytes is not None and needed[place] > place.free_bytes:
            names = ", ".join(f"rank {rank}" for rank in ranks)
            raise PlanMismatch(
                f"{names} on {place} need {needed[place] / 1e9:.1f} GB by the plan, and {place} has "
                f"{place.free_bytes / 1e9:.1f} GB free; free some, use more devices, or make a plan with --memory-limit"
            )


def free_bytes(device: str) -> int | None:
    """Free memory of a device in bytes; None where nobody says."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    if not device.startswith("cpu"):
        return None
    known = [free for free in (_available(), _left_in_group()) if free is not None]
    return min(known, default=None)


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kilobytes = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return int(kilobytes) * 1024 if kilobytes is not None else None


def _left_in_group(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the control group of this process, such as a container, may still take (cgroup v2)."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((folder / "memory.current").read_text())
        cached = next(
            int(line.split()[1])
            for line in (folder / "memory.stat").read_text().splitlines()
            if line.startswith("file ")
        )
        return int(limit) - used + cached
    except (OSError, StopIteration, ValueError):
        return None


def resident_bytes() -> int:
    """Resident memory of this process; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def read_in_libraries() -> None:
    """Run what nearly every denoiser runs, once and small, so that its code is in this process's memory from now on."""
    image, tokens = torch.zeros(2, 32, 16, 16), torch.zeros(2, 4, 64, 32)
    functional.conv2d(image, torch.zeros(32, 32, 3, 3), padding=1)
    functional.conv2d(image, torch.zeros(32, 32, 1, 1))
    functional.silu(functional.group_norm(image, 8))
    functional.gelu(functional.layer_norm(functional.linear(tokens, torch.zeros(32, 32), torch.zeros(32)), [32]))
    functional.linear(torch.zeros(2, 32), torch.zeros(32, 32))
    functional.scaled_dot_product_attention(tokens, tokens, tokens)
    torch.cat([image, image], 1).permute(0, 2, 3, 1).contiguous()


def give_back() -> None:
    """Hand memory that this process has freed back to the system; glibc keeps much of it until it is told."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
