"""What a program may have done before it starts an engine: closed, ignored, deleted or used up what others rely on."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.errors import StartupError
from runtime.ranks.launch import STATUS_TAKEN
from tests.support.engines import equal
from tests.support.traces import rank_processes
from tests.support.trouble import engine_for, fragile, inputs, plan_for, trajectory

pytestmark = pytest.mark.processes

FRAGILE = fragile()

DAEMON = """
import os, signal, sys
import torch
from tests.support.engines import equal
from tests.support.traces import rank_processes
from tests.support.trouble import call_until_it_fails, engine_for, fragile, plan_for, trajectory

denoiser = fragile()
plan, wanted = plan_for(denoiser, 3), trajectory(denoiser)
folder, said = sys.argv[1], os.open(sys.argv[2], os.O_WRONLY)
for number in range(3):
    os.close(number)
sys.stdin = sys.stdout = sys.stderr = None
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.chdir(folder)
os.rmdir(folder)
with engine_for(denoiser, plan, exact=True) as engine:
    assert equal(trajectory(engine), wanted)
    links = [os.readlink(f"/proc/{pid}/fd/{number}") for pid in rank_processes() for number in range(3)]
    os.write(said, repr(links).encode() + b"\\n")
    os.kill(rank_processes()[0], signal.SIGKILL)
    os.write(said, str(call_until_it_fails(engine, begin=6)).encode())
"""


def test_a_daemon_without_streams_home_folder_or_statuses(tmp_path: Path) -> None:
    said = tmp_path / "said"
    said.touch()
    folder = tmp_path / "folder"
    folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    done = subprocess.run(
        [sys.executable, "-c", DAEMON, str(folder), str(said)],
        cwd=Path(__file__).parents[3],
        env={**environment, "TMPDIR": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    links, error = said.read_text().splitlines()
    assert links == repr(["/dev/null"] * 6)
    assert error.startswith("rank 1 (component 1), step ")
    assert error.endswith(STATUS_TAKEN)


@pytest.mark.processes(forked=False)
def test_a_start_for_which_descriptors_do_not_suffice_says_so_and_the_next_works() -> None:
    plan, wanted = plan_for(FRAGILE, 3), trajectory(FRAGILE)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    refused = []
    for room in range(0, 100, 3):
        free = sorted(set(range(limits[0])) - set(map(int, os.listdir("/proc/self/fd"))))
        resource.setrlimit(resource.RLIMIT_NOFILE, (free[room], limits[1]))
        try:
            with engine_for(FRAGILE, plan, exact=True) as engine:
                assert equal(trajectory(engine), wanted)
                break
        except StartupError as error:
            refused.append(str(error))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert not rank_processes()
    assert len(refused) > 2
    assert all("Too many open files" in text for text in refused), refused
    with engine_for(FRAGILE, plan, exact=True) as engine:
        engine(**inputs(0))
