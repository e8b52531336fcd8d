"""Another Unix user of the machine, who attacks a running engine from its start to its end: nothing gained or lost."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pytest

from runtime.ranks.torchrun_store import SECRET_VARIABLE
from tests.support.engines import equal
from tests.support.other_user import OtherUser, python_of_another, tree
from tests.support.strangers import descendants
from tests.support.traces import rank_processes
from tests.support.trouble import engine_for, fragile, plan_for, trajectory, wait_until
from tests.support.two_agents import agents

PYTHON, NONE = python_of_another()

pytestmark = [pytest.mark.processes(forked=False), pytest.mark.skipif(PYTHON is None, reason=NONE)]

SOFT_LIMIT = 256  # of descriptors of each process of the job: fewer than come in a flood


def test_another_user_gains_nothing_of_an_engine_on_one_machine() -> None:
    denoiser = fragile()
    plan, wanted = plan_for(denoiser, 3), trajectory(denoiser)
    with OtherUser(PYTHON, lambda: tree([os.getpid()])) as other:
        for _ in range(2):
            with engine_for(denoiser, plan, exact=True) as engine:
                rounds = other.tried.get("rounds", 0)
                wait_until(lambda before=rounds: other.tried.get("rounds", 0) > before + 2)
                assert len(rank_processes()) == 2
                assert equal(trajectory(engine), wanted)
    assert not other.gained
    assert min(other.tried[what] for what in ("signal", "look at", "trace", "open", "take")) > 2


def test_another_user_gains_nothing_of_torchruns_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, "a secret of the user's")
    with agents("-m", "tests.support.torchrun_script", "strangers", logs=tmp_path, anew=True) as (first, second):
        for agent in (first, second):
            resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, (SOFT_LIMIT, SOFT_LIMIT))
        # torchrun's own processes, whose store everybody may use, are left alone
        with OtherUser(PYTHON, lambda: descendants([first.pid, second.pid])) as other:
            out, err = first.communicate(timeout=300)
            no_out, later = second.communicate(timeout=120)
    assert (first.returncode, second.returncode, no_out) == (0, 0, ""), err + later
    assert list(map(json.loads, out.splitlines())) == [{"equal": True, "listening": []}] * 2
    assert not other.gained
    attacks = ("signal", "look at", "trace", "open", "take", "connect", "flood", "hold", "garble", "replay", "guess")
    assert not [what for what in attacks if not other.tried.get(what)], other.tried
    assert other.tried["connect"] > SOFT_LIMIT
