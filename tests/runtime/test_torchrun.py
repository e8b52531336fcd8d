"""Ranks that torchrun has started: the engine's own bits, and a door that only lets keepers in."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from runtime import torchrun
from runtime.cli import main
from runtime.errors import PlanMismatch, StartupError
from runtime.ranks import torchrun_agent as keeper
from runtime.ranks.torchrun_agent import HELLO
from runtime.ranks.torchrun_driver import torchrun_launcher
from runtime.transport.weights import digest_of
from tests.runtime.test_cli import Home
from tests.support.two_agents import agents


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


@pytest.mark.processes
@pytest.mark.parametrize("files", ["on every machine", "on the driver's"])
def test_two_machines_give_the_bytes_of_the_engines_own_launch(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str], files: str
) -> None:
    name = "stable_diffusion"
    arguments = ["--prompt", "a red cat", "--height", "32", "--width", "32", "--steps", "3", "--json"]
    own, theirs = tmp_path / "own.png", tmp_path / "theirs.png"
    assert main([str(home.plan(name)), "--pipeline", str(home.pipeline(name)), *arguments, "--output", str(own)]) == 0
    wanted = json.loads(capsys.readouterr().out)
    everywhere = files == "on every machine"
    pipeline = home.pipeline(name) if everywhere else home.pipeline(name).relative_to(home.folder)
    command = ["-m", "runtime.cli", str(home.plan(name)), "--pipeline", str(pipeline), *arguments]
    with agents(*command, "--output", str(theirs), logs=tmp_path, folders=(home.folder, tmp_path)) as (first, second):
        out, err = first.communicate(timeout=300)
        assert first.returncode == 0, err
        no_out, err = second.communicate(timeout=300)
        assert (second.returncode, no_out) == (0, ""), err
    assert theirs.read_bytes() == own.read_bytes()
    got = json.loads(out)
    assert [row["parameter_bytes"] for row in got["per_rank"]] == [row["parameter_bytes"] for row in wanted["per_rank"]]
    more = got["per_rank"][0]["sent_bytes"] - wanted["per_rank"][0]["sent_bytes"]
    if everywhere:
        assert more == 0, "the rank has read its parameters itself"
    else:
        size_bytes = got["per_rank"][1]["parameter_bytes"]
        assert 0.99 * size_bytes < more <= size_bytes, "they were sent, but for what no file holds, which always is"


def test_a_file_counts_as_the_same_by_what_it_holds(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1.0, dtype=torch.bfloat16), "c": torch.zeros(0, 3)}
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    save_file(tensors, one)
    save_file({**tensors, "a": tensors["a"].view(3, 2), "c": tensors["c"].double()}, other)
    for name in tensors:
        assert digest_of(one, name) is not None
        assert (digest_of(one, name) == digest_of(other, name)) == (name == "b")
    assert digest_of(tmp_path / "none.safetensors", "a") is None
    assert digest_of(one, "d") is None
    one.write_bytes(b"garbage")
    assert digest_of(one, "a") is None


# ---- the door


@contextlib.contextmanager
def open_door(world: int = 2) -> Iterator[Any]:
    door = torchrun._Door(world)
    door.open("127.0.0.1")
    try:
        yield door
    finally:
        door._close()


class AtWork:
    """A keeper at work in a thread of this process."""

    def __init__(self, door: Any) -> None:
        self.keeping = keeper.TorchrunAgent(1, json.loads(door.invitation()))
        self.thread = threading.Thread(target=self._obey)
        self.thread.start()

    def _obey(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            self.keeping.obey()


def test_a_keepers_process_is_begun_and_its_end_is_told() -> None:
    with open_door() as door:
        at_work = AtWork(door)
        launched = door.begin(1, timeout_s=60)
        with launched.line:
            assert launched.host == "127.0.0.1"
            assert launched.process.ending() is None
            pid = int(str(launched.process).split()[0])
            os.kill(pid, signal.SIGTERM)
            assert launched.process.ending(timeout_s=60) == "was killed by signal 15 (SIGTERM)"
        launched.process.kill()
        with door.begin(1, timeout_s=60).line as line:
            line.shutdown(socket.SHUT_RDWR)  # ends itself where its connection does
    at_work.thread.join(timeout=60)
    assert not at_work.thread.is_alive()


def test_a_keeper_that_cannot_begin_a_process_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_door() as door:
        at_work = AtWork(door)
        monkeypatch.setattr("sys.executable", "/nowhere/python")
        with pytest.raises(OSError, match="/nowhere/python"):
            door.begin(1, timeout_s=60)
    at_work.thread.join(timeout=60)


def test_strangers_are_not_let_in() -> None:
    with open_door() as door:
        port = json.loads(door.invitation())["port"]
        for first in (b"GET / HTTP/1.1\r\n" * 9, HELLO.pack(bytes(32), 1, 0), HELLO.pack(door._token, 7, 0), b""):
            # the door may close before all is said
            with socket.create_connection(("127.0.0.1", port)) as stranger, contextlib.suppress(OSError):
                stranger.sendall(first)
                stranger.shutdown(socket.SHUT_WR)
                assert stranger.recv(1) == b""
        assert not door._keepers
        assert not door._lines
        with pytest.raises(StartupError, match=r"rank 1, which torchrun should have started, has not reached"):
            door.begin(1, timeout_s=0.1)


def test_a_keeper_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_door() as door:
        at_work = AtWork(door)
        door._keeper(1, timeout_s=60)
        monkeypatch.setattr("partitioner.__version__", "0.0.0")
        with pytest.raises(StartupError, match=r"has diffusion-partitioner \S+ and the driver has 0\.0\.0"):
            door.begin(1, timeout_s=60)
    at_work.thread.join(timeout=60)


def test_a_plan_for_another_number_of_ranks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torchrun_launcher(3) is None, "torchrun has not started the tests"
    monkeypatch.setattr(torchrun, "_door", torchrun._Door(2))
    assert torchrun_launcher(2) is not None
    with pytest.raises(PlanMismatch, match=r"needs 3 ranks and torchrun has started 2"):
        torchrun_launcher(3)
