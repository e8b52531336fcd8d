"""Memory: what a device has free, what this process holds, and giving freed memory back.

Figures of the machine and of processes come from psutil, of GPUs from CUDA. The limit of the control group that this
process is in, such as a container's, is read here: psutil has the machine's memory only.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import psutil
import torch
from torch.nn import functional

SHARED_REGION_BYTES = 8 << 20  # of what ranks on GPUs share between processes: at least so much at a time
GROUP = Path("/sys/fs/cgroup")  # of this process, in a container that of the container


def free_bytes(device: str) -> int | None:
    """Free memory of a device in bytes; None for other devices than GPUs and the cpu.

    Of a GPU, what torch's allocator has cached in this process is free, too: it is used for the next tensors. What this
    process may not have (torch.cuda.set_per_process_memory_fraction) is not.

    Args:
        device: as torch names it, such as "cuda:0" or "cpu".
    """
    if device.startswith("cuda"):
        free, whole = torch.cuda.mem_get_info(torch.device(device))
        used = torch.cuda.memory_allocated(device)
        most = int(whole * torch.cuda.get_per_process_memory_fraction(device))
        return min(int(free) + torch.cuda.memory_reserved(device) - used, most - used)
    if not device.startswith("cpu"):
        return None
    available = int(psutil.virtual_memory().available)
    allowed = _left_in_group()
    return available if allowed is None else min(available, allowed)


def limited_group() -> int | None:
    """The number of this process's control group, if its limit leaves less than the machine has free; else None."""
    allowed = _left_in_group()
    if allowed is None or allowed >= psutil.virtual_memory().available:
        return None
    return GROUP.stat().st_ino  # which no other group of this kernel has


def _left_in_group(folder: Path = GROUP) -> int | None:
    """What the control group of this process, such as a container's, may still take (cgroup v2); None: no limit."""
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
    """Resident memory of this process in bytes."""
    return int(psutil.Process().memory_info().rss)


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
    """Return memory that this process has freed to the system and to GPUs, for other processes to use.

    glibc and torch keep much of it until they are told to.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    torch.cuda.empty_cache()  # without effect where this process has not used a GPU
