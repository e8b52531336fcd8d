"""What the driver and a torchrun agent send each other, once the connection is authenticated.

    agent                         driver
    Introduction  ->                          first message of the agent's connection
                  <-  Begin                   start a process for the agent's rank ...
    (a connection ->)                         ... which is connected by itself, with a key that Begin gives
    Begun | Refused  ->
    Ended         ->                          when the process has ended
                  <-  Kill
                  <-  Compare                 which of these files hold the driver's tensors?
    Same          ->
                  <-  Goodbye                 the driver's program ends

A process is known by its number, which is never used twice. All of it is plain data, JSON, and checked field by field
when it is read (MessageLine): neither side can make the other run or load anything but what is said here.
"""

from __future__ import annotations

import os
import platform
import socket
import struct
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Generic, Literal, TypeVar

import torch
from pydantic import Field, TypeAdapter, ValidationError

from partitioner._version import __version__
from profiles.records import Record, Text
from runtime.devices.memory import free_bytes, limited_group
from runtime.ranks.torchrun_store import HexKey, Port
from runtime.transport.handshake import shut_down
from runtime.transport.neighbours import boot_id

_LENGTH = struct.Struct("!I")
_LONGEST = 64 << 20  # bytes of a message: Compare names every tensor of a denoiser

_Natural = Annotated[int, Field(ge=0, lt=2**63)]
_Positive = Annotated[int, Field(gt=0, lt=2**32)]
_Tensors = Annotated[frozenset[Text], Field(max_length=10**6)]


class Introduction(Record):
    """Who an agent is.

    rank: of the job. local_rank: among the ranks of its machine. pid: of its process. machine: host name and boot id.
    gpus: how many its process sees. visible_gpus: which, as CUDA_VISIBLE_DEVICES has it. memory: whose it takes, its
    kernel's or a control group's. cpu_free_bytes: how much of that is free.
    """

    kind: Literal["introduction"] = "introduction"
    rank: _Natural
    local_rank: _Natural
    pid: _Positive
    machine: tuple[Text, Text]
    versions: Annotated[Mapping[Text, Text], Field(max_length=16)]
    gpus: _Natural
    visible_gpus: Text | None
    memory: Text
    cpu_free_bytes: _Natural | None

    @classmethod
    def own(cls, rank: int) -> Introduction:
        """That of this process."""
        versions = {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "diffusion-partitioner": __version__,
        }
        group = limited_group()
        kernel = boot_id() or socket.gethostname()
        return cls(
            rank=rank,
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
            pid=os.getpid(),
            machine=(socket.gethostname(), boot_id()),
            versions=versions,
            gpus=torch.cuda.device_count(),
            visible_gpus=os.environ.get("CUDA_VISIBLE_DEVICES"),
            memory=kernel if group is None else f"{kernel} {group}",
            cpu_free_bytes=free_bytes("cpu"),
        )


class Begin(Record):
    """Start a process for the agent's rank, under this number, and connect it to the driver's port by this key."""

    kind: Literal["begin"] = "begin"
    number: _Positive
    port: Port
    key: HexKey


class Kill(Record):
    """Kill that process."""

    kind: Literal["kill"] = "kill"
    number: _Positive


class Compare(Record):
    """Ask which files hold the driver's tensors. files, digests: by the tensor's path in the denoiser."""

    kind: Literal["compare"] = "compare"
    files: Mapping[Text, Path]
    digests: Mapping[Text, Text]


class Begun(Record):
    """The process is connected and runs."""

    kind: Literal["begun"] = "begun"
    number: _Positive
    pid: _Positive


class Refused(Record):
    """The process cannot be started, and why."""

    kind: Literal["refused"] = "refused"
    number: _Positive
    text: Text


class Ended(Record):
    """The process has ended.

    status: its exit status, or minus the signal that killed it (as in subprocess); None: somebody else has taken it.
    """

    kind: Literal["ended"] = "ended"
    number: _Positive
    status: Annotated[int, Field(ge=-256, le=256)] | None


class Same(Record):
    """The answer to Compare: the tensors, by path, whose files the agent's machine has with the same content."""

    kind: Literal["same"] = "same"
    tensors: _Tensors


class Goodbye(Record):
    """The driver's program ends."""

    kind: Literal["goodbye"] = "goodbye"


FromAgent = Introduction | Begun | Refused | Ended | Same
FromDriver = Begin | Kill | Compare | Goodbye
FROM_AGENT: TypeAdapter[FromAgent] = TypeAdapter(Annotated[FromAgent, Field(discriminator="kind")])
FROM_DRIVER: TypeAdapter[FromDriver] = TypeAdapter(Annotated[FromDriver, Field(discriminator="kind")])

Incoming = TypeVar("Incoming")


class NoMessage(ConnectionError):
    """What came over a connection is none of the messages that may come there."""


class MessageLine(Generic[Incoming]):
    """A connection that carries messages: for each its length in 4 bytes, then JSON. Thread-safe for senders.

    Args:
        line: connected and authenticated; closed with this.
        kinds: of the messages that may come.
    """

    def __init__(self, line: socket.socket, kinds: TypeAdapter[Incoming]) -> None:
        self._line = line
        self._kinds = kinds
        self._lock = threading.Lock()

    def send(self, message: Record) -> None:
        """Send a message; OSError where the connection has ended."""
        content = message.model_dump_json().encode()
        with self._lock:
            self._line.sendall(_LENGTH.pack(len(content)) + content)

    def receive(self) -> Incoming:
        """Wait for the next message.

        Raises:
            NoMessage: what came is none.
            OSError, EOFError: the connection has ended.
        """
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        if length > _LONGEST:
            raise NoMessage(f"a message of {length} bytes has come, more than {_LONGEST}")
        try:
            return self._kinds.validate_json(self._read(length), strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part)[:80] for part in first["loc"])
            raise NoMessage(f"what has come is no message: {where}{': ' if where else ''}{first['msg']}") from None

    def _read(self, length: int) -> bytes:
        got = bytearray()
        while len(got) < length:
            more = self._line.recv(min(length - len(got), 1 << 20))
            if not more:
                raise EOFError
            got += more
        return bytes(got)

    def close(self) -> None:
        """Close it, for the other end, too."""
        shut_down(self._line)
        self._line.close()
