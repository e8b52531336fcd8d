"""Measures the memory (bytes) of an engine's processes from a process that does nothing else.

    python -m tools.bench.rank_memory FOLDER

FOLDER is made by ``save`` and holds a denoiser, a plan and the inputs of a call. The denoiser is loaded as a pipeline
loads it, from a file that the ranks can read too, so that each of them, the driver's among them, ends up with its own
parameters only. The code of libraries is in memory before anything is counted: in this process by loading and tracing
the denoiser once, in the other ranks from their start.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from partitioner.graph.export import trace
from partitioner.plan.plan import Plan
from runtime.devices.memory import give_back, read_in_libraries, resident_bytes
from runtime.engine import Engine
from tools.command import command

CALLS = 6  # until all that a trajectory keeps is there


def save(folder: Path, denoiser: Any, plan: Plan, inputs: Mapping[str, Any]) -> None:
    """Write the folder that ``measure`` reads. denoiser: a model of diffusers."""
    denoiser.save_pretrained(folder / "denoiser")
    plan.save(folder / "plan.json")
    torch.save(dict(inputs), folder / "inputs.pt")


def measure(folder: Path) -> list[dict[str, Any]]:
    """The rows of ``run``, measured in a process of its own."""
    command = [sys.executable, "-m", "tools.bench.rank_memory", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def run(folder: Path) -> list[dict[str, Any]]:
    """For each rank its parameter_bytes, and the memory of its process: started_bytes before it has any parameters,
    resident_bytes after some calls."""
    import diffusers

    torch.set_num_threads(1)
    path = folder / "denoiser"
    kind = getattr(diffusers, json.loads((path / "config.json").read_text())["_class_name"])
    plan = Plan.load(folder / "plan.json")
    inputs = torch.load(folder / "inputs.pt", weights_only=True)
    started_bytes = _rehearse(lambda: kind.from_pretrained(path).eval(), plan, inputs)
    denoiser = kind.from_pretrained(path).eval()
    timestep = next(item.path for item in plan.inputs if item.role == "timestep")
    with Engine(denoiser, plan) as engine:
        for call in range(CALLS):
            engine(**{**inputs, timestep: torch.full_like(inputs[timestep], 900.0 - call)})
        give_back()  # of the driver's process: what loading and tracing took and is no rank's
        return [
            {
                "parameter_bytes": report.parameter_bytes,
                "resident_bytes": report.resident_bytes,
                "started_bytes": report.started_bytes if rank else started_bytes,
            }
            for rank, report in enumerate(engine.stats.ranks)
        ]


def _rehearse(load: Callable[[], nn.Module], plan: Plan, inputs: Mapping[str, Any]) -> int:
    """Memory of this process after the denoiser was loaded, traced and freed, so that all code for that is in."""
    trace(load(), inputs, {item.path: item.role for item in plan.inputs})
    read_in_libraries()
    gc.collect()
    give_back()
    return resident_bytes()


@command("tools.bench.rank_memory")
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the rows as JSON."""
    (folder,) = sys.argv[1:] if arguments is None else arguments
    print(json.dumps(run(Path(folder))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
