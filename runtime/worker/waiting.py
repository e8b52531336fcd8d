"""Waiting: work that may have to wait for messages, as a generator; run to its end, or several of them together."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from typing import TypeVar

import torch

from runtime.transport.mailbox import Mailbox, MessageKey

T = TypeVar("T")

# Yields the key of a message that it cannot go on without, and wants to be resumed when that has arrived; its return
# value is the work's. So the same code serves a rank that has a thread of its own, which then waits (run_to_end),
# several evaluations of one rank that take turns (together), and ranks that take turns in one thread (EmulatedRanks).
Waiting = Generator[MessageKey, None, T]


def run_to_end(work: Waiting[T], mailbox: Mailbox, timeout_s: float | None = None) -> T:
    """Run work in this thread, without gradients, and wait where it must.

    Args:
        work: what to run.
        mailbox: where the messages arrive that it waits for.
        timeout_s: from now until its end; None for no deadline.

    Returns:
        The work's own value.

    Raises:
        TimeoutError: a message has not arrived when ``timeout_s`` is over.
    """
    end = None if timeout_s is None else time.monotonic() + timeout_s
    with torch.no_grad():
        while True:
            try:
                key = next(work)
            except StopIteration as done:
                value: T = done.value
                return value
            mailbox.wait(key, None if end is None else max(0.0, end - time.monotonic()))


def together(works: Sequence[Waiting[T]], mailbox: Mailbox) -> Waiting[list[T]]:
    """Independent works as one: while an earlier one must wait, a later one goes on. Its value is the list of theirs.

    Whenever several can go on, the first in the list does, which makes micro-batches follow each other through the
    components in order (runtime.worker.microbatches).
    """
    values: dict[int, T] = {}
    waiting: dict[int, MessageKey] = {}
    while len(values) < len(works):
        able = [i for i in range(len(works)) if i not in values and (i not in waiting or mailbox.ready(waiting[i]))]
        if not able:
            yield waiting[min(waiting)]
            continue
        first = able[0]
        waiting.pop(first, None)
        try:
            waiting[first] = next(works[first])
        except StopIteration as done:
            values[first] = done.value
    return [values[i] for i in range(len(works))]
