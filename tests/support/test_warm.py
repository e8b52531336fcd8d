"""What is forked is to its parent what is started: arguments, variables, folder, streams, end and children."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support import warm
from tests.support.traces import is_gone
from tests.support.trouble import wait_until

pytestmark = pytest.mark.processes

SAYS = """
import json, os, sys
print(json.dumps([sys.argv, sys.path[0], os.getcwd(), os.environ.get("SAID"), os.getppid(), __name__]))
print("an error", file=sys.stderr)
sys.exit(7)
"""


@pytest.mark.parametrize("way", ["-c", "-m", "a script"])
def test_a_program_is_given_what_it_would_be(way: str, tmp_path: Path) -> None:
    script = tmp_path / "says.py"
    script.write_text(SAYS)
    begin = {"-c": ["-c", SAYS], "-m": ["-m", "says"], "a script": [str(script)]}[way]
    done = warm.run([*begin, "a", "-b"], cwd=tmp_path, env={**os.environ, "SAID": "so"}, capture_output=True)
    first, place = {"-c": ("-c", ""), "-m": (str(script), str(tmp_path))}.get(way, (str(script), str(tmp_path)))
    assert json.loads(done.stdout) == [[first, "a", "-b"], place, str(tmp_path), "so", os.getpid(), "__main__"]
    assert (done.returncode, done.stderr) == (7, "an error\n")


def test_an_error_and_a_signal_end_it() -> None:
    failed = warm.run(["-c", "raise ValueError('no')"], capture_output=True)
    assert (failed.returncode, failed.stderr.splitlines()[-1]) == (1, "ValueError: no")
    with warm.start(["-c", "import time; time.sleep(100)"], stderr=subprocess.PIPE) as program:
        program.send_signal(signal.SIGTERM)
        assert program.wait(timeout=60) == -signal.SIGTERM
    with pytest.raises(subprocess.TimeoutExpired):
        warm.run(["-c", "import time; time.sleep(100)"], timeout=0.2)


RANKS = """
import os
from tests.support.traces import rank_processes
from tests.support.trouble import engine_for, fragile, plan_for, trajectory
denoiser = fragile()
with engine_for(denoiser, plan_for(denoiser, 3), exact=True) as engine:
    trajectory(engine)
    print(*rank_processes(), flush=True)
    input()
"""


def test_its_ranks_are_its_children_and_end_with_it() -> None:
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with warm.start(["-c", RANKS], cwd=Path(__file__).parents[2], **options) as program:
        assert program.stdout is not None
        ranks = list(map(int, program.stdout.readline().split()))
        assert len(ranks) == 2
        program.kill()
    wait_until(lambda: all(map(is_gone, ranks)))
