"""environment: the machine, the versions and the command, for a benchmark's document."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch


def environment(module: str) -> dict[str, Any]:
    """The machine, the versions and the command.

    Args:
        module: that was run.
    """
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "command": " ".join([Path(sys.executable).name, "-m", module, *sys.argv[1:]]),
    }
