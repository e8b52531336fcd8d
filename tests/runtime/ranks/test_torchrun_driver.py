"""DriverServer: it accepts agents and what they start, and nobody else. Whole jobs: tests/runtime/test_torchrun.py."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.devices.places import Place
from runtime.errors import OtherProcess, PlanMismatch, StartupError
from runtime.ranks import torchrun_driver, torchrun_store
from runtime.ranks.launch import STATUS_TAKEN
from runtime.ranks.remote_agent import RemoteAgent
from runtime.ranks.torchrun_agent import TorchrunAgent
from runtime.ranks.torchrun_driver import DriverServer, torchrun_launcher
from runtime.ranks.torchrun_messages import FROM_AGENT, FROM_DRIVER, FromDriver, Introduction, MessageLine
from runtime.ranks.torchrun_store import SECRET_VARIABLE, driver_key, find_contact
from runtime.transport.door import enter
from runtime.transport.handshake import HostAndPort, NotAdmitted
from tests.support.traces import listening
from tests.support.trouble import wait_until


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
        self.agent = TorchrunAgent(1, server.contact)
        self.thread = threading.Thread(target=self._obey)
        self.thread.start()

    def _obey(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            self.agent.obey()
        self.agent._driver.close()


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


@pytest.mark.processes
def test_the_status_of_a_process_that_somebody_else_has_taken_is_no_zero() -> None:
    with running_server() as server:
        at_work = AgentThread(server)
        before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        try:
            launched = server.begin(1, timeout_s=60)
            with launched.line:
                os.kill(int(str(launched.process).split()[0]), signal.SIGKILL)
                assert launched.process.ending(timeout_s=60) == STATUS_TAKEN
        finally:
            signal.signal(signal.SIGCHLD, before)
        launched.process.kill()
    at_work.thread.join(timeout=60)


def test_an_agent_that_cannot_begin_a_process_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_server() as server:
        at_work = AgentThread(server)
        monkeypatch.setattr("sys.executable", "/nowhere/python")
        with pytest.raises(OSError, match="/nowhere/python"):
            server.begin(1, timeout_s=60)
    at_work.thread.join(timeout=60)


def come_in(server: DriverServer, seat: int = 1) -> MessageLine[FromDriver]:
    """A connection that has proved the key, and has said nothing yet."""
    line = enter(server._door.address, server._key.proof, seat, time.monotonic() + 60)
    return MessageLine(line, FROM_DRIVER)


def is_closed(line: MessageLine[FromDriver]) -> bool:
    with pytest.raises((EOFError, OSError)):
        line.receive()
    line.close()
    return True


class Malicious:
    """Leaves a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("knows_key", [False, True])
def test_nothing_is_ever_unpickled(tmp_path: Path, caplog: pytest.LogCaptureFixture, knows_key: bool) -> None:
    trap = pickle.dumps(Malicious(tmp_path / "unpickled"))
    with running_server(3) as server:
        for framed in (trap, len(trap).to_bytes(4, "big") + trap):
            if knows_key:
                stranger = come_in(server, 1 if framed is trap else 2)._line
            else:
                stranger = socket.create_connection(server._door.address, timeout=60)
            with stranger, contextlib.suppress(OSError):
                stranger.sendall(framed)
                stranger.shutdown(socket.SHUT_WR)
                while stranger.recv(100):
                    pass
        if knows_key:
            wait_until(lambda: len(caplog.records) == 2, timeout_s=30)
            assert "what torchrun has started for rank 2 is given up: what has come is no message" in caplog.text
        assert not server._agents
    assert not (tmp_path / "unpickled").exists()


WRONG = {
    "is of another rank": {"rank": 2},
    "is of no rank": {"rank": -1},
    "has a name that is none": {"machine": ["a", 7]},
    "has a field more": {"run": "this"},
    "has a long text": {"versions": {"python": "3" * 10**5}},
    "has too many": {"versions": {str(number): "3" for number in range(10**3)}},
    "is nothing of the kind": {"kind": "kill"},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_agent_that_says_something_else_is_given_up(wrong: str, caplog: pytest.LogCaptureFixture) -> None:
    with running_server(3) as server:
        line = come_in(server)
        content = json.dumps({**json.loads(Introduction.own(1).model_dump_json()), **WRONG[wrong]}).encode()
        line._line.sendall(len(content).to_bytes(4, "big") + content)
        assert is_closed(line)
        assert "rank 1 is given up" in caplog.text
        assert not server._agents
        with pytest.raises(StartupError, match="rank 1, which torchrun should have started, has not reached"):
            server.begin(1, timeout_s=0.1)


@pytest.mark.parametrize(
    "said", [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\4null", b'\0\0\0\2{"', b"\0\0\x20\0" + b"[" * 8192, b"\0\0"]
)
def test_an_agent_that_garbles_later_is_given_up_and_said_to_have_ended(said: bytes) -> None:
    with running_server() as server:
        line = come_in(server)
        line.send(Introduction.own(1))
        agent = server._agent(1, timeout_s=60)
        line._line.sendall(said)
        line._line.shutdown(socket.SHUT_WR)
        assert is_closed(line)
        wait_until(lambda: agent.lost)
        with pytest.raises(OSError, match=r"the process that torchrun had started for it .* has ended"):
            server.begin(1, timeout_s=60)


def test_a_living_agent_is_not_replaced(caplog: pytest.LogCaptureFixture) -> None:
    with running_server(3) as server:
        at_work = AgentThread(server)
        agent = server._agent(1, timeout_s=60)
        with pytest.raises(NotAdmitted, match="1 is taken there"):
            TorchrunAgent(1, server.contact)
        assert caplog.messages == ["who came as rank 1 was refused: it is there already, or not expected"]
        assert server._agent(1, timeout_s=60) is agent
        assert not agent.lost
        come_in(server, 2).close()
    at_work.thread.join(timeout=60)


@pytest.mark.processes
def test_nobody_takes_the_connection_of_a_process_that_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its door is open for a moment only, with a key of its own; the key in the store does not help."""
    doors: list[HostAndPort] = []

    def intrude(address: HostAndPort, key: bytes, seat: int, until: float) -> socket.socket:
        doors.append(address)
        for guessed in (server._key.proof, server._key.shared, bytes(32)):
            with pytest.raises(NotAdmitted):
                enter(address, guessed, seat, until)
        with pytest.raises(NotAdmitted):
            enter(address, key, seat + 1, until)
        return enter(address, key, seat, until)

    with running_server() as server:
        at_work = AgentThread(server)
        server._agent(1, timeout_s=60)
        monkeypatch.setattr("runtime.ranks.torchrun_agent.enter", intrude)
        launched = server.begin(1, timeout_s=60)
        assert len(doors) == 1
        assert not listening([os.getpid()])
        launched.process.kill()
        launched.line.close()
    at_work.thread.join(timeout=60)


def test_a_secret_of_the_users_is_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, "a secret")
    with running_server() as server:
        with pytest.raises(NotAdmitted):
            enter(server._door.address, server._key.shared, 1, time.monotonic() + 60)  # what the store tells
        monkeypatch.setenv(SECRET_VARIABLE, "another")
        with pytest.raises(NotAdmitted, match="another key"):
            TorchrunAgent(1, server.contact)
        monkeypatch.delenv(SECRET_VARIABLE)
        with pytest.raises(ConnectionError, match=f"the driver has the variable {SECRET_VARIABLE} and this process"):
            TorchrunAgent(1, server.contact)
        with pytest.raises(NotAdmitted):  # a stranger has changed what the store says
            TorchrunAgent(1, server.contact.model_copy(update={"with_secret": False}))
        monkeypatch.setenv(SECRET_VARIABLE, "a secret")
        at_work = AgentThread(server)
        server._agent(1, timeout_s=60)
    at_work.thread.join(timeout=60)


def test_an_agent_with_a_secret_does_not_work_for_a_driver_without(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_server() as server:
        monkeypatch.setenv(SECRET_VARIABLE, "a secret")
        with pytest.raises(ConnectionError, match=f"this process has the variable {SECRET_VARIABLE} and the driver"):
            TorchrunAgent(1, server.contact)


def test_a_contact_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for planted in (
        b"",
        b"null",
        b'{"host": 1}',
        pickle.dumps(1),
        b'{"host":"a","port":0,"key":"","with_secret":false}',
    ):
        monkeypatch.setattr(torchrun_store, "launcher_store", lambda _, planted=planted: {driver_key(): planted})
        with pytest.raises(ConnectionError, match="in the place of the driver's address"):
            find_contact(1.0)


def test_every_restart_of_a_job_has_a_key_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    first = driver_key()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert driver_key() != first


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
        address = server._door.address
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=60)


def test_a_plan_for_another_number_of_ranks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torchrun_launcher(3) is None, "torchrun has not started the tests"
    with running_server() as server:
        monkeypatch.setattr(torchrun_driver, "_server", server)
        assert torchrun_launcher(2) is server
        with pytest.raises(PlanMismatch, match=r"needs 3 ranks and torchrun has started 2"):
            torchrun_launcher(3)


def test_a_process_that_was_forked_from_the_driver_does_not_use_its_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_server() as server, monkeypatch.context() as forked:
        forked.setattr(torchrun_driver, "_server", server)
        forked.setattr(server, "_owner", os.getpid() + 1)
        with pytest.raises(OtherProcess, match="forked from the driver that torchrun has started"):
            torchrun_launcher(2)


def test_every_rank_has_the_gpu_of_its_number_on_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks 0 and 1 are on the driver's machine, 2 and 3 on another."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    own = Introduction.own(0)
    other = ("other", "boot")
    with running_server(world=4) as server, contextlib.ExitStack() as stack:
        for rank, local_rank, machine in ((1, 1, own.machine), (2, 0, other), (3, 1, other)):
            ours, theirs = socket.socketpair()
            stack.enter_context(ours)
            stack.enter_context(theirs)
            changed = {"rank": rank, "local_rank": local_rank, "machine": machine, "cpu_free_bytes": 7}
            changed["memory"] = own.memory if machine == own.machine else "its memory"
            line = MessageLine(ours, FROM_AGENT)
            server._agents[rank] = RemoteAgent(line, own.model_copy(update=changed))
        assert server.places(["cuda"] * 4, timeout_s=1) == [
            Place("", "cuda:0", None), Place("", "cuda:1", None), Place("other", "cuda:0", None),
            Place("other", "cuda:1", None),
        ]  # fmt: skip
        named = server.places(["cuda:1", "cpu:0", "cpu", "cuda:0"], timeout_s=1)
        assert [place.device for place in named] == ["cuda:1", "cpu", "cpu", "cuda:0"]
        assert [place.free_bytes for place in named][2:] == [7, None]
        changed = {"machine": (own.machine[0], "another boot"), "local_rank": 0}
        server._agents[2].introduction = server._agents[2].introduction.model_copy(update=changed)
        assert [place.machine for place in server.places(["cuda"] * 4, timeout_s=1)] == [
            "", "", f"{own.machine[0]} another boot", "other",
        ], "a host of the same name is another machine"  # fmt: skip
        with pytest.raises(PlanMismatch, match="rank 3 is to be on cuda:3 of other, where its process sees 2 GPUs"):
            server.places(["cuda:0", "cuda:1", "cuda:0", "cuda:3"], timeout_s=1)


def test_ranks_are_counted_together_where_they_take_one_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the names of their hosts: containers have names of their own, or all that of the host."""
    own = Introduction.own(0)
    kernel, other = own.machine[1], "another boot"
    limited = f"{kernel} 4711"  # a container with a limit of its own
    given = [
        (("container", kernel), own.memory, 7),
        ((own.machine[0], kernel), limited, 5),
        (("far", other), other, 9),
        (("far", other), f"{other} 1", 3),
        (("container on far", other), other, 8),
    ]
    with running_server(world=6) as server, contextlib.ExitStack() as stack:
        for rank, (machine, memory, free) in enumerate(given, 1):
            ours, theirs = socket.socketpair()
            stack.enter_context(ours)
            stack.enter_context(theirs)
            changed = {"rank": rank, "machine": machine, "memory": memory, "cpu_free_bytes": free}
            server._agents[rank] = RemoteAgent(MessageLine(ours, FROM_AGENT), own.model_copy(update=changed))
        places = server.places(["cpu"] * 6, timeout_s=1)
    assert [place.machine for place in places] == [
        "", "", f"{own.machine[0]} {limited}", f"far {other}", f"far {other} 1", f"far {other}"
    ]  # fmt: skip
    assert [place.free_bytes for place in places][1:] == [7, 5, 9, 3, 8]
    monkeypatch.setattr("runtime.ranks.torchrun_messages.limited_group", lambda: 4711)
    assert Introduction.own(0).memory == limited


@pytest.mark.parametrize(("visible", "own"), [("GPU-5e, MIG-6a", ["cuda:0"] * 2), ("1,1", None), (None, None)])
def test_a_process_that_was_given_one_gpu_uses_that(
    visible: str | None, own: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA_VISIBLE_DEVICES names GPUs in several ways, and each process counts its own from 0."""
    shown = [None, None] if visible is None else visible.split(",")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown[0] is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown[0])
    changed = {"rank": 1, "local_rank": 1, "visible_gpus": shown[1]}
    ours, theirs = socket.socketpair()
    with running_server() as server, ours, theirs:
        introduction = Introduction.own(0).model_copy(update=changed)
        server._agents[1] = RemoteAgent(MessageLine(ours, FROM_AGENT), introduction)
        if own is None:
            with pytest.raises(PlanMismatch, match=r"rank 1 is to be on cuda:1 of .* sees 1 GPUs"):
                server.places(["cuda"] * 2, timeout_s=1)
        else:
            assert [place.device for place in server.places(["cuda"] * 2, timeout_s=1)] == own
