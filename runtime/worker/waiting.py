"""Waiting: work that may have to wait for messages, as a generator; run to its end, or several of them together."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from typing import TypeVar

import torch

from runtime.transport.mailbox import Mailbox, MessageKey

T = TypeVar("T")
PIECE_S = 0.5  # of a wait

# Yields the key of a message that it cannot go on without, and wants to be resumed when that has arrived; its return
# value is the work's. So the same code serves a rank that has a thread of its own, which then waits (run_to_end),
# several evaluations of one rank that take turns (together), and ranks that take turns in one thread (EmulatedRanks).
Waiting = Generator[MessageKey, None, T]


def run_to_end(work: Waiting[T], mailbox: Mailbox, timeout_s: float | None = None) -> T:
    """Run work in this thread, without gradients, and wait where it must.

    Args:
        work: what to run.
        mailbox: where the messages arrive that it waits for.
        timeout_s: how long to wait in all; None for no deadline. While this process is stopped, as by Ctrl-Z, nobody
            waits.

    Returns:
        The work's own value.

    Raises:
        TimeoutError: a message has not arrived when ``timeout_s`` is over.
    """
    left_s = timeout_s
    with torch.no_grad():
        while True:
            try:
                key = next(work)
            except StopIteration as done:
                value: T = done.value
                return value
            if left_s is None:
                mailbox.wait(key)
            else:
                left_s = _wait(mailbox, key, left_s)


def _wait(mailbox: Mailbox, key: MessageKey, most_s: float) -> float:
    """Wait for a message; returns how much of the time is left."""
    for piece_s in pieces(most_s):
        begin = time.monotonic()
        try:
            mailbox.wait(key, piece_s)
        except TimeoutError:
            most_s -= piece_s
        else:
            return max(0.0, most_s - min(piece_s, time.monotonic() - begin))
    raise TimeoutError(f"no message {key} in time")


def pieces(seconds: float) -> Iterator[float]:
    """The parts of a wait: a process that was stopped meanwhile and goes on finds that one of them has passed."""
    while seconds > PIECE_S:
        yield PIECE_S
        seconds -= PIECE_S
    yield max(0.0, seconds)


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
