"""What a measured profile notes of the device: its name, its clock, and the versions of what ran on it."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch


def device_name(device: torch.device) -> str:
    """What the system calls the device ("AMD EPYC 7B13", "NVIDIA L40S")."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def clock_mhz(device: torch.device) -> float | None:
    """The clock that the device has now; None where the system does not say."""
    if device.type == "cuda":
        try:
            return float(torch.cuda.clock_rate(device)) or None
        except Exception:  # it asks the driver's management library, which may be missing
            return None
    text = _cpuinfo("cpu MHz")
    return float(text) if text else None


def versions(device: torch.device) -> dict[str, str]:
    """Versions of Python and torch, on a GPU also of CUDA and cuDNN."""
    found = {"python": platform.python_version(), "torch": str(torch.__version__)}
    if device.type == "cuda":
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        found |= {"cuda": str(torch.version.cuda), "cudnn": str(cudnn)}
    return found


def _cpuinfo(field: str) -> str | None:
    path = Path("/proc/cpuinfo")
    found = re.search(rf"^{field}\s*:\s*(.+)$", path.read_text(), re.MULTILINE) if path.exists() else None
    return found[1].strip() if found else None
