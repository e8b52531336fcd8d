"""Programs that end without having left their block or closed their engine: in silence, with their own exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import warm

pytestmark = pytest.mark.processes

PROGRAM = """
import sys, types
import torch
from safetensors.torch import load_file, save_file
from runtime import parallelize
from runtime.errors import EngineClosed
from tests.support.engines import equal
from tests.support.traces import rank_processes
from tests.support.trouble import fragile, inputs, plan_for, trajectory

how, transport, file = sys.argv[1:]
denoiser = fragile()
plan, wanted = plan_for(denoiser), trajectory(denoiser)
save_file(denoiser.state_dict(), file)
denoiser.load_state_dict(load_file(file), assign=True)  # so that the block lets go of parameters
pipe = types.SimpleNamespace(unet=denoiser)

def enter():
    context = parallelize(pipe, plan, exact=True, transport=transport)
    engine = context.__enter__()
    assert equal(trajectory(pipe.unet), wanted)
    assert engine.stats.steps == 6
    print(*rank_processes(), flush=True)
    return context, engine

class Leaves:
    def __del__(self):
        self.held[0].__exit__(None, None, None)

if how == "held":
    held = enter()
elif how == "exit in a function":
    def use():
        held = enter()
        sys.exit(7)
    use()
elif how == "error":
    held = enter()
    raise ValueError("a user's own")
elif how == "cycle":
    pipe.held = enter(), pipe
    del pipe
elif how == "finalizer":
    leaves = Leaves()
    leaves.held = enter()
elif how == "called at the end":
    import atexit
    @atexit.register
    def late():
        try:
            trajectory(pipe.unet)
        except EngineClosed as error:
            print(error)
    held = enter()
"""

ENDS = {"held": 0, "exit in a function": 7, "error": 1, "cycle": 0, "finalizer": 0, "called at the end": 0}


def _run(program: str, *arguments: str, anew: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a program in a fork, or in a process that is started anew."""
    command, options = ["-c", program, *arguments], {"cwd": Path(__file__).parents[3], "capture_output": True}
    if anew:
        return subprocess.run([sys.executable, *command], text=True, timeout=300, **options)
    return warm.run(command, timeout=300, **options)


@pytest.mark.parametrize(
    ("how", "transport", "anew"),
    [
        ("held", "processes", True),
        ("held", "threads", False),
        ("exit in a function", "processes", False),
        ("error", "processes", False),
        ("cycle", "threads", False),
        ("finalizer", "processes", False),
        ("called at the end", "threads", True),
    ],
)
def test_a_program_ends_in_a_block_that_it_never_left(how: str, transport: str, anew: bool, tmp_path: Path) -> None:
    done = _run(PROGRAM, how, transport, str(tmp_path / "weights.safetensors"), anew=anew)
    assert done.returncode == ENDS[how], done.stderr
    if how == "error":
        assert done.stderr.count("Traceback") == 1
        assert done.stderr.endswith("ValueError: a user's own\n")
    else:
        assert done.stderr == ""
    ranks, *said = done.stdout.splitlines() or [""]
    assert len(ranks.split()) == (transport == "processes")
    assert not [pid for pid in ranks.split() if os.path.exists(f"/proc/{pid}")]
    assert said == (["the engine has ended with the program"] if how == "called at the end" else [])


BUSY = """
import sys
import torch
from torch import nn
from partitioner.graph.export import trace
from runtime.engine import Engine
from runtime.options import EngineOptions
from tests.support.engines import plan_of

class Slow(nn.Module):
    def forward(self, x, t):
        begun = x + t
        for _ in range(40):
            begun = torch.tanh(begun @ x)
        return (begun + x,)

x = torch.rand(600, 600)
calls = [{"x": x, "t": torch.tensor(900.0 - call)} for call in range(3)]
denoiser = Slow().eval()
graph = trace(denoiser, calls[0], {"x": "latent", "t": "timestep"}, model="slow")
last = {node.name for node in graph.latent_nodes[-1:]}
plan = plan_of(graph, {node.name: int(node.name in last) for node in graph.latent_nodes}, warmup=1)
engine = Engine(denoiser, plan, EngineOptions(transport="threads"))
with torch.no_grad():
    for call in calls:
        engine(**call)
"""


def test_a_program_ends_while_a_rank_that_is_a_thread_computes() -> None:
    """In async mode the other rank still computes when the last call has returned."""
    done = _run(BUSY)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


THROWN_AWAY = (
    PROGRAM.split("if how")[0]
    + """
engine = parallelize(pipe, plan, transport=transport).__enter__()
assert not rank_processes()
assert equal(trajectory(pipe.unet), wanted)
"""
)


def test_a_block_that_nobody_keeps_says_that_it_has_ended(tmp_path: Path) -> None:
    done = _run(THROWN_AWAY, "", "processes", str(tmp_path / "weights.safetensors"))
    assert done.returncode == 0, done.stderr
    assert "RuntimeWarning: a parallelize block was thrown away before its end" in done.stderr
    assert "Exception ignored" not in done.stderr
