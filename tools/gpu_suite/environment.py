"""environment: what the machine is, as far as it explains the figures of the other parts."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from tools.gpu_suite.part_run import PartRun

PACKAGES = ("torch", "triton", "diffusers", "transformers", "pydantic", "numpy", "cuda-bindings", "nvidia-nccl-cu13")
LIMIT_S = 15.0  # for each of those below
SAYS = (("nvidia-smi",), ("nvidia-smi", "topo", "-m"), ("nvcc", "--version"))


def environment(run: PartRun) -> dict[str, Any]:
    """Versions, processors, the GPU's properties, and what NVIDIA's programs say of it."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "machine": platform.platform(),
        "processors": os.cpu_count(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "mps": shutil.which("nvidia-cuda-mps-control") is not None,
        "says": {" ".join(command): _output(command) for command in SAYS if shutil.which(command[0])},
    }
    if run.on_gpu:
        properties = torch.cuda.get_device_properties(run.target)
        names = ("name", "multi_processor_count", "total_memory", "L2_cache_size", "major", "minor")
        found["gpu"] = {name: getattr(properties, name) for name in names}
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _output(command: tuple[str, ...]) -> str:
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False).stdout
    except subprocess.TimeoutExpired:
        return f"nothing within {LIMIT_S:g} s"
    return said[-4000:]
