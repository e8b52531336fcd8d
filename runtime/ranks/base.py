"""Ranks: starts the ranks of an engine, gives them commands, supervises and ends them.

EmulatedRanks   all in the caller's thread, in turn; the reference that tests compare the others with
ThreadRanks     one thread each
ProcessRanks    one process each
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from runtime.devices.stream import DeviceStream
from runtime.ranks.rank_report import Report
from runtime.transport.local import LocalMailbox
from runtime.transport.mailbox import Mailbox
from runtime.transport.weight_files import StoredTensor
from runtime.worker.commands import Build, Forget, ForgetGraphs, Load, RankCommand, SendBack, Setup, WorkerCommand
from runtime.worker.recording import Recorder
from runtime.worker.waiting import Waiting
from runtime.worker.worker import Worker

T = TypeVar("T")


class Ranks(ABC):
    """The ranks of one engine, each with a worker for every denoiser that the engine runs.

    workers: rank 0's own, by denoiser, which run in the driver's thread and on ``stream``.
    """

    workers: Sequence[Worker]

    @property
    def stream(self) -> DeviceStream:
        """The device stream of rank 0."""
        return DeviceStream(0, self.workers[0].device)

    @abstractmethod
    def command(self, rank: int, command: RankCommand) -> None:
        """Tell a rank other than 0 what to do next; returns at once."""

    def follow_settings(self) -> None:
        """Have ranks compute from now on by the settings of torch that this process has now; threads of it do."""
        return

    def readable(self, rank: int, stored: Mapping[str, StoredTensor]) -> dict[str, Path]:
        """Files that the rank can read itself, with the content that the driver sees, by the tensor's path.

        Args:
            rank: which.
            stored: path of a parameter in the denoiser -> where this machine's files hold it.
        """
        return {}

    @abstractmethod
    def run(self, work: Waiting[T]) -> T:
        """Run rank 0's own work to its end, while the other ranks do theirs, and return its value.

        Raises:
            EngineError: a rank has failed, ended or stalled.
        """

    @abstractmethod
    def wait_loaded(self) -> None:
        """Wait until every rank has done its Load commands, as far as its thread goes; its device may be behind."""

    @abstractmethod
    def reports(self) -> list[Report]:
        """A report of every rank, by rank."""

    @abstractmethod
    def close(self) -> None:
        """End every rank; nothing is left running. May be called again."""


class DenoiserRanks:
    """The ranks of an engine as the driver of one of its denoisers sees them.

    worker: rank 0's own for this denoiser.
    """

    def __init__(self, ranks: Ranks, denoiser: int) -> None:
        self._ranks = ranks
        self._denoiser = denoiser
        self.worker = ranks.workers[denoiser]
        self.readable = ranks.readable
        self.wait_loaded = ranks.wait_loaded

    def command(self, rank: int, command: WorkerCommand) -> None:
        """Tell a rank other than 0 what to do next for this denoiser; returns at once."""
        self._ranks.command(rank, RankCommand(self._denoiser, command))

    def run(self, work: Waiting[T]) -> T:
        """Run rank 0's own work to its end; see Ranks."""
        return self._ranks.run(work)


Setups = Sequence[Setup]  # of one rank, by denoiser


def workers_of(setups: Setups, mailbox: Mailbox) -> list[Worker]:
    """The workers of one rank, by denoiser. mailbox: the rank's."""
    recorder = Recorder() if setups[0].record else None
    return [Worker(setup, mailbox, recorder) for setup in setups]


def local_workers(setups: Sequence[Setups]) -> list[list[Worker]]:
    """The workers of ranks in one process, by rank and denoiser; ranks are connected by LocalMailboxes."""
    peers: list[LocalMailbox] = []
    for own in setups:
        peers.append(LocalMailbox(own[0].rank, peers, torch.device(own[0].device)))
    return [workers_of(own, mailbox) for own, mailbox in zip(setups, peers, strict=True)]


def begin_work(workers: Sequence[Worker], told: RankCommand) -> Waiting[Any] | None:
    """The work that a command means for a rank's workers; None where it is done already."""
    worker, command = workers[told.denoiser], told.command
    if isinstance(command, Build):
        worker.build(command)
        return None
    if isinstance(command, SendBack):
        worker.send_back(command)
        return None
    if isinstance(command, Forget):
        worker.forget(command)
        return None
    if isinstance(command, ForgetGraphs):
        return worker.forget_graphs(command)
    return worker.load(command) if isinstance(command, Load) else worker.evaluate(command)
