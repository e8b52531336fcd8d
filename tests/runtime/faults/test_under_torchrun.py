"""Faults 1, 2, 4 and 14 where torchrun has started the ranks, on two machines; and strangers who connect to them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from runtime.ranks.torchrun_store import SECRET_VARIABLE
from tests.support.strangers import Strangers
from tests.support.traces import is_gone
from tests.support.trouble import DEADLINE_S, wait_until
from tests.support.two_agents import agents

pytestmark = pytest.mark.processes

SCRIPT = "tests.support.torchrun_script"


def test_ranks_that_die_or_stall_are_named_and_the_next_start_works(tmp_path: Path) -> None:
    """Faults 1, 2 and 14. Last of all torchrun's agent ends the process that it has started for rank 1."""
    with agents("-m", SCRIPT, "agent", logs=tmp_path) as (first, second):
        out, err = first.communicate(timeout=300)
        assert first.returncode == 1, err
        no_out, err = second.communicate(timeout=120)
        assert (second.returncode, no_out) == (1, ""), err
    sound, streams, dead, stopped, sound_again, ended = map(json.loads, out.splitlines())
    assert sound == sound_again == {"fault": "none", "equal": True, "near": [1], "far": []}, "through shared memory"
    assert streams == {"fault": "none", "equal": True, "foreseen": 5}
    for told, error in ((dead, "RankDied"), (stopped, "RankStalled"), (ended, "RankDied")):
        assert (told["error"], told["rank"]) == (error, 1)
        assert told["seconds"] < 2 + DEADLINE_S * (error == "RankStalled")
    assert re.search(r"its process \d+ on \S+ was killed by signal 9 .SIGKILL", dead["text"])
    assert f"waits for %{stopped['value']} of rank 1" in stopped["text"]
    assert "ended with the process that torchrun had started for it" in ended["text"]


def test_ranks_of_two_machines_that_die_or_stall_are_named_and_the_next_start_works(tmp_path: Path) -> None:
    """Faults 1 and 2, of ranks that are connected by TCP. Their machines only say that they are two."""
    with agents("-m", SCRIPT, "apart", logs=tmp_path) as (first, second):
        out, err = first.communicate(timeout=300)
        assert first.returncode == 0, err
        no_out, later = second.communicate(timeout=120)
        assert (second.returncode, no_out) == (0, ""), later
    sound, dead, stopped, sound_again = map(json.loads, out.splitlines())
    assert sound == sound_again == {"fault": "none", "equal": True, "near": [], "far": [1]}
    assert [(told["error"], told["rank"]) for told in (dead, stopped)] == [("RankDied", 1), ("RankStalled", 1)]
    assert "share no memory" not in err + later


def test_ranks_of_a_machine_share_memory_and_others_are_reached_over_the_network(tmp_path: Path) -> None:
    """Four ranks on two machines, or what says so; in the second engine a rank of the other machine dies."""
    with agents("-m", SCRIPT, "two each", logs=tmp_path, ranks=2) as (first, second):
        out, err = first.communicate(timeout=300)
        assert first.returncode == 0, err
        assert second.wait(timeout=120) == 0
    sound, dead = map(json.loads, out.splitlines())
    assert sound == {"fault": "none", "equal": True, "near": [1], "far": [2, 3]}
    assert (dead["error"], dead["rank"]) == ("RankDied", 3)


def test_ranks_of_a_machine_that_share_no_memory_say_so_once_and_use_the_network(tmp_path: Path) -> None:
    with agents("-m", SCRIPT, "blind", logs=tmp_path) as (first, second):
        out, err = first.communicate(timeout=300)
        assert first.returncode == 0, err
        _, later = second.communicate(timeout=120)
        assert second.returncode == 0, later
    assert json.loads(out) == {"fault": "none", "equal": True, "near": [], "far": [1]}
    assert (err + later).count("share no memory") == 1
    assert "rank 0 and rank 1 are on one machine, by its boot id, and share no memory (the other has no memory" in err


def test_ranks_end_with_their_driver(tmp_path: Path) -> None:
    """Fault 4."""
    with agents("-m", SCRIPT, "driver", logs=tmp_path) as (first, second):
        assert first.stdout is not None
        words = json.loads(first.stdout.readline())
        wait_until(lambda: all(map(is_gone, words["pids"])))
        assert (first.wait(timeout=120), second.wait(timeout=120)) == (1, 1)
        assert second.stderr is not None
        assert "the driver, rank 0, has ended without a word" in second.stderr.read()


def test_strangers_gain_nothing_and_cost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They guess, hold, garble, replay and flood, at every port that opens, from the first process on to the last."""
    monkeypatch.setenv(SECRET_VARIABLE, "a secret of the user's")
    trap = tmp_path / "unpickled"
    with agents("-m", SCRIPT, "strangers", logs=tmp_path, anew=True) as (first, second):
        with Strangers([first.pid, second.pid], trap) as strangers:
            out, err = first.communicate(timeout=300)
            no_out, later = second.communicate(timeout=120)
        assert (first.returncode, second.returncode, no_out) == (0, 0, ""), err + later
        # the driver's door to agents may have been too short for them, those between ranks wait for a rank's start
        assert len(strangers.attacked) >= 2
        assert not strangers.let_in
    assert not trap.exists()
    assert list(map(json.loads, out.splitlines())) == [{"equal": True, "listening": []}] * 2
