"""Ranks: starts the ranks other than the driver's, gives them commands, supervises and ends them.

Three kinds with one face: EmulatedRanks (one thread runs all in turn: the oracle of every test), ThreadRanks (one
thread each) and, in processes.py, ProcessRanks (one process each).
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
from runtime.worker.commands import Build, Evaluate, Load, Setup
from runtime.worker.waiting import Waiting
from runtime.worker.worker import Worker

T = TypeVar("T")


class Ranks(ABC):
    """The ranks of one engine. ``worker`` is rank 0's own, which lives in the driver's thread and on ``stream``."""

    worker: Worker

    @property
    def stream(self) -> DeviceStream:
        return DeviceStream(0, self.worker.device)

    @abstractmethod
    def command(self, rank: int, command: Build | Load | Evaluate) -> None:
        """Tell a rank (not 0) what to do next; returns at once."""

    def readable(self, rank: int, files: Mapping[str, Path]) -> dict[str, Path]:
        """Those of the files, by parameter, from which the rank itself can read what the driver has."""
        return {}

    @abstractmethod
    def run(self, work: Waiting[T]) -> T:
        """Run rank 0's own work to its end while the others do theirs; raises their failures."""

    @abstractmethod
    def wait_loaded(self) -> None:
        """Wait until every rank has done the Load commands it was given; its thread, not its device."""

    @abstractmethod
    def reports(self) -> list[Report]:
        """What every rank has done, by rank."""

    @abstractmethod
    def close(self) -> None:
        """End every rank; nothing is left running. May be called again."""


def local_workers(setups: Sequence[Setup]) -> list[Worker]:
    peers: list[LocalMailbox] = []
    for setup in setups:
        peers.append(LocalMailbox(setup.rank, peers, torch.device(setup.device)))
    return [Worker(setup, mailbox) for setup, mailbox in zip(setups, peers, strict=True)]


def begin_work(worker: Worker, command: Build | Load | Evaluate) -> Waiting[Any] | None:
    if isinstance(command, Build):
        worker.build(command)
        return None
    return worker.load(command) if isinstance(command, Load) else worker.evaluate(command)
