"""What the driver and a torchrun agent send each other, once the connection is authenticated.

    agent                         driver
    Introduction  ->                          first message of the agent's own connection
                  <-  Begin                   start a process for the agent's rank ...
    Attach        ->                          ... which connects by itself; this is its connection's first message
    Begun | Refused  ->
    Ended         ->                          when the process has ended
                  <-  Kill
                  <-  Compare                 which of these files hold the driver's tensors?
    Same          ->
                  <-  Goodbye                 the driver's program ends

A process is known by its number, which is never used twice.
"""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from partitioner._version import __version__
from runtime.devices.memory import free_bytes


@dataclass(frozen=True)
class Introduction:
    """Who an agent is.

    rank: of the job. local_rank: among the ranks of its machine. pid: of its process. machine: host name and boot id.
    gpus: how many its process sees. cpu_free_bytes: free memory.
    """

    rank: int
    local_rank: int
    pid: int
    machine: tuple[str, str]
    versions: Mapping[str, str]
    gpus: int
    cpu_free_bytes: int | None

    @classmethod
    def own(cls, rank: int) -> Introduction:
        """That of this process."""
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            boot = ""
        versions = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusion-partitioner": __version__,
        }
        return cls(
            rank=rank,
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
            pid=os.getpid(),
            machine=(socket.gethostname(), boot),
            versions=versions,
            gpus=torch.cuda.device_count(),
            cpu_free_bytes=free_bytes("cpu"),
        )


@dataclass(frozen=True)
class Attach:
    """This connection is for process ``number`` of rank ``rank``."""

    rank: int
    number: int


@dataclass(frozen=True)
class Begin:
    """Start a process for the agent's rank, under this number, and connect it to the driver."""

    number: int


@dataclass(frozen=True)
class Kill:
    """Kill that process."""

    number: int


@dataclass(frozen=True)
class Compare:
    """Ask which files hold the driver's tensors. files, digests: by the tensor's path in the denoiser."""

    files: Mapping[str, Path]
    digests: Mapping[str, str]


@dataclass(frozen=True)
class Begun:
    """The process is connected and runs."""

    number: int
    pid: int


@dataclass(frozen=True)
class Refused:
    """The process cannot be started, and why."""

    number: int
    text: str


@dataclass(frozen=True)
class Ended:
    """The process has ended. status: its exit status, or minus the signal that killed it (as in subprocess)."""

    number: int
    status: int


@dataclass(frozen=True)
class Same:
    """The answer to Compare: the tensors, by path, whose files the agent's machine has with the same content."""

    tensors: frozenset[str]


@dataclass(frozen=True)
class Goodbye:
    """The driver's program ends."""
