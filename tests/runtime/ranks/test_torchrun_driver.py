"""DriverServer: it accepts agents and what they start, and nobody else. Whole jobs: tests/runtime/test_torchrun.py."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Pipe
from pathlib import Path

import pytest

from runtime.devices.places import Place
from runtime.errors import PlanMismatch, StartupError
from runtime.ranks import torchrun_driver
from runtime.ranks.remote_agent import RemoteAgent
from runtime.ranks.torchrun_agent import TorchrunAgent
from runtime.ranks.torchrun_driver import DriverServer, torchrun_launcher
from runtime.ranks.torchrun_messages import Attach, Introduction


@contextlib.contextmanager
def running_server(world: int = 2) -> Iterator[DriverServer]:
    server = DriverServer(world, "127.0.0.1")
    try:
        yield server
    finally:
        server.close()


class AgentThread:
    """An agent at work in a thread of this process."""

    def __init__(self, server: DriverServer) -> None:
        self.agent = TorchrunAgent(1, json.loads(server.contact()))
        self.thread = threading.Thread(target=self._obey)
        self.thread.start()

    def _obey(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            self.agent.obey()


@pytest.mark.processes
def test_an_agents_process_is_begun_and_its_end_is_told() -> None:
    with running_server() as server:
        at_work = AgentThread(server)
        launched = server.begin(1, timeout_s=60)
        with launched.line:
            assert launched.host == "127.0.0.1"
            assert launched.process.ending() is None
            pid = int(str(launched.process).split()[0])
            os.kill(pid, signal.SIGTERM)
            assert launched.process.ending(timeout_s=60) == "was killed by signal 15 (SIGTERM)"
        launched.process.kill()
        with server.begin(1, timeout_s=60).line as line:
            line.shutdown(socket.SHUT_RDWR)  # ends itself where its connection does
    at_work.thread.join(timeout=60)
    assert not at_work.thread.is_alive()


def test_an_agent_that_cannot_begin_a_process_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_server() as server:
        at_work = AgentThread(server)
        monkeypatch.setattr("sys.executable", "/nowhere/python")
        with pytest.raises(OSError, match="/nowhere/python"):
            server.begin(1, timeout_s=60)
    at_work.thread.join(timeout=60)


class Malicious:
    """Leaves a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.file,)


def test_strangers_are_not_let_in(tmp_path: Path) -> None:
    with running_server() as server:
        address = ("127.0.0.1", json.loads(server.contact())["port"])
        for first in (b"GET / HTTP/1.1\r\n" * 9, b"\x00\x00\x00\x10" + bytes(16), b"\x00\x00", b""):
            # the server may close before all is sent
            with socket.create_connection(address) as stranger, contextlib.suppress(OSError):
                stranger.sendall(first)
                stranger.shutdown(socket.SHUT_WR)
                while stranger.recv(100):
                    pass  # the challenge, which anybody gets
        with pytest.raises(AuthenticationError):
            Client(address, authkey=bytes(32))
        with Client(address) as stranger:
            stranger.send(Malicious(tmp_path / "unpickled"))
            assert stranger.recv_bytes().startswith(b"#CHALLENGE#")
            assert stranger.recv_bytes() == b"#FAILURE#"
            with pytest.raises((EOFError, OSError)):
                stranger.recv_bytes()
        with Client(address, authkey=server._key) as other:
            other.send(Attach(rank=7, number=1))  # knows the key, and is of no rank of this job
            with pytest.raises((EOFError, OSError)):
                other.recv()
        assert not (tmp_path / "unpickled").exists()
        assert not server._agents
        assert not server._lines
        with pytest.raises(StartupError, match=r"rank 1, which torchrun should have started, has not reached"):
            server.begin(1, timeout_s=0.1)


def test_a_silent_stranger_holds_nobody_up_and_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchrun_driver, "_GREETING_S", 2.0)
    with running_server() as server:
        address = ("127.0.0.1", json.loads(server.contact())["port"])
        with socket.create_connection(address, timeout=60) as stranger:
            begin = time.monotonic()
            at_work = AgentThread(server)
            server._agent(1, timeout_s=60)
            assert time.monotonic() - begin < 2, "the agent came in while the stranger was still connected"
            while stranger.recv(100):
                pass
            assert 1.9 < time.monotonic() - begin < 30
    at_work.thread.join(timeout=60)


def test_an_agent_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_server() as server:
        at_work = AgentThread(server)
        server._agent(1, timeout_s=60)
        monkeypatch.setattr("runtime.ranks.torchrun_messages.__version__", "0.0.0")
        with pytest.raises(StartupError, match=r"has diffusion-partitioner \S+ and the driver has 0\.0\.0"):
            server.begin(1, timeout_s=60)
    at_work.thread.join(timeout=60)


def test_a_server_that_is_closed_listens_no_more() -> None:
    with running_server() as server:
        address = ("127.0.0.1", json.loads(server.contact())["port"])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=60)


def test_a_plan_for_another_number_of_ranks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torchrun_launcher(3) is None, "torchrun has not started the tests"
    with running_server() as server:
        monkeypatch.setattr(torchrun_driver, "_server", server)
        assert torchrun_launcher(2) is server
        with pytest.raises(PlanMismatch, match=r"needs 3 ranks and torchrun has started 2"):
            torchrun_launcher(3)


def test_every_rank_has_the_gpu_of_its_number_on_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks 0 and 1 are on the driver's machine, 2 and 3 on another."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    own = Introduction.own(0)
    other = ("other", "boot")
    with running_server(world=4) as server, contextlib.ExitStack() as stack:
        for rank, local_rank, machine in ((1, 1, own.machine), (2, 0, other), (3, 1, other)):
            ours, theirs = Pipe()
            stack.enter_context(ours)
            stack.enter_context(theirs)
            introduction = replace(own, rank=rank, local_rank=local_rank, machine=machine, cpu_free_bytes=7)
            server._agents[rank] = RemoteAgent(ours, introduction)
        assert server.places(["cuda"] * 4, timeout_s=1) == [
            Place("", "cuda:0", None), Place("", "cuda:1", None), Place("other", "cuda:0", None),
            Place("other", "cuda:1", None),
        ]  # fmt: skip
        named = server.places(["cuda:1", "cpu:0", "cpu", "cuda:0"], timeout_s=1)
        assert [place.device for place in named] == ["cuda:1", "cpu", "cpu", "cuda:0"]
        assert [place.free_bytes for place in named][2:] == [7, None]
        with pytest.raises(PlanMismatch, match="rank 3 is to be on cuda:3 of other, where its process sees 2 GPUs"):
            server.places(["cuda:0", "cuda:1", "cuda:0", "cuda:3"], timeout_s=1)
