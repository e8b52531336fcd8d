"""Memory: whether the devices have what a plan says that its ranks need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from partitioner.plan import Plan, seat_of
from runtime.errors import PlanMismatch


def check_memory(plan: Plan, devices: Sequence[str], *, held_on: str | None) -> None:
    """PlanMismatch where a device has less free memory than the plan predicts for its ranks, together.

    devices: rank -> device. held_on: the device that holds the denoiser's parameters already, which ranks on it in
    the driver's process use as they are; None where every rank but the driver's needs its own copy.
    """
    needed: dict[str, int] = {}
    ranks_on: dict[str, list[int]] = {}
    for rank, device in enumerate(devices):
        branch, component = seat_of(rank, plan.components)
        predicted = plan.predicted.components[branch * plan.components + component]
        there = device == held_on or (held_on is None and rank == 0)
        needed[device] = needed.get(device, 0) + predicted.memory_bytes - there * predicted.parameter_bytes
        ranks_on.setdefault(device, []).append(rank)
    for device, ranks in ranks_on.items():
        free = free_bytes(device)
        if free is not None and needed[device] > free:
            names = ", ".join(f"rank {rank}" for rank in ranks)
            raise PlanMismatch(
                f"{names} on {device} need {needed[device] / 1e9:.1f} GB by the plan, and {device} has "
                f"{free / 1e9:.1f} GB free; free some, use more devices, or make a plan with --memory-limit"
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
        used = int((folder / "memory.current").read_text())
        cached = next(
            int(line.split()[1])
            for line in (folder / "memory.stat").read_text().splitlines()
            if line.startswith("file ")
        )
    except (OSError, StopIteration, ValueError):
        return None
    return int(limit) - used + cached if limit != "max" else None
