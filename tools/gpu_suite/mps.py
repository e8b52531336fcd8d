"""NVIDIA's Multi-Process Service, started for the suite: lets kernels of several processes run at once on one GPU."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

PROGRAM = "nvidia-cuda-mps-control"
LIMIT_S = 10.0  # for its start, and for its end


def mps_folder(folder: Path) -> str:
    """Where the service of the suite in that folder is found: CUDA_MPS_PIPE_DIRECTORY of those that use it."""
    return str(folder / "mps")


def mps_runs(folder: Path) -> bool:
    """Whether there is one; without it CUDA goes on as if none had been named."""
    return Path(mps_folder(folder)).is_dir()


@contextlib.contextmanager
def mps(folder: Path) -> Iterator[bool]:
    """The service runs inside the block, if it can be had; whether it does. Only processes that name it use it."""
    pipes = Path(mps_folder(folder))
    environment = {**os.environ, "CUDA_MPS_PIPE_DIRECTORY": str(pipes), "CUDA_MPS_LOG_DIRECTORY": str(pipes)}
    if shutil.which(PROGRAM) is None:
        yield False
        return
    pipes.mkdir(exist_ok=True)
    started = False
    with contextlib.suppress(subprocess.TimeoutExpired):  # the other parts need none
        started = subprocess.run([PROGRAM, "-d"], env=environment, timeout=LIMIT_S, check=False).returncode == 0
    if not started:
        shutil.rmtree(pipes, ignore_errors=True)
    try:
        yield started
    finally:
        if started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run([PROGRAM], input=b"quit\n", env=environment, timeout=LIMIT_S, check=False)
