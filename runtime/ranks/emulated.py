"""EmulatedRanks: all ranks in one thread, in turn; for tests, and to measure the quality of plans without devices."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from runtime.errors import RankStalled
from runtime.ranks.base import Ranks, Setups, T, begin_work, local_workers
from runtime.ranks.rank_report import Report, report
from runtime.worker.commands import RankCommand
from runtime.worker.waiting import Waiting


class EmulatedRanks(Ranks):
    """All ranks in the caller's thread, each running until it must wait. Their order cannot change a result."""

    def __init__(self, setups: Sequence[Setups]) -> None:
        self._workers = local_workers(setups)
        self.workers = self._workers[0]
        self._queues: list[deque[Waiting[Any]]] = [deque() for _ in setups]

    def command(self, rank: int, command: RankCommand) -> None:
        work = begin_work(self._workers[rank], command)
        if work is not None:
            self._queues[rank].append(work)

    def run(self, work: Waiting[T]) -> T:
        value: list[T] = []

        def own() -> Waiting[None]:
            value.append((yield from work))

        self._queues[0].append(own())
        self._pump()
        return value[0]

    def wait_loaded(self) -> None:
        self._pump()

    def _pump(self) -> None:
        """Run every rank until all wait for commands, or for messages that later commands will bring."""
        waiting: dict[int, Any] = {}
        with torch.no_grad():
            moved = True
            while moved:
                moved = False
                for rank, queue in enumerate(self._queues):
                    while queue:
                        if rank in waiting and not self._workers[rank][0].mailbox.ready(waiting[rank]):
                            break
                        waiting.pop(rank, None)
                        moved = True
                        try:
                            waiting[rank] = next(queue[0])
                        except StopIteration:
                            queue.popleft()
        if self._queues[0]:
            raise RankStalled(f"it waits for {waiting[0]}, which no rank will send", rank=0, step=self.workers[0].step)

    def reports(self) -> list[Report]:
        return [report(workers) for workers in self._workers]

    def close(self) -> None:
        for workers in self._workers:
            workers[0].mailbox.close()
            for worker in workers:
                worker.let_go()
        self._queues = [deque() for _ in self._queues]
