"""What a command does as a process: keeps freed memory, ends on Ctrl-C, and forks a helper."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TypeVar

BLOCK_BYTES = 31 << 20  # just below the 32 MiB up to which glibc adapts


def keep_freed_memory() -> None:
    """From now on blocks of up to BLOCK_BYTES come from memory that this process has already; costs next to nothing.

    glibc gives freed memory back to the system, to be faulted in again at the next call, until the process has once
    freed a large block. Page faults were a tenth of a denoiser's step on a CPU. At most twice BLOCK_BYTES stay unused.
    """
    import torch

    torch.empty(BLOCK_BYTES, dtype=torch.uint8)


INTERRUPTED = 130  # the exit code, as a shell would report it


def interrupted(program: str) -> int:
    """Say on stderr that ``program`` was interrupted; returns its exit code. To be called on KeyboardInterrupt."""
    # An interrupt that is raised inside exec(str), which dataclasses call, CPython remembers as unhandled: it would end
    # ``python -m`` by the signal and not by the exit code. It forgets at the next exec(str).
    exec("")
    print(f"{program}: interrupted", file=sys.stderr)
    return INTERRUPTED


T = TypeVar("T")


def beside(work: Callable[[], T], timeout_s: float = 300.0) -> Callable[[], T]:
    """Start ``work`` beside this process; the returned function waits for its value, which must pickle.

    Only for processes that have started no threads which ``work`` needs: a fork has none of them. Where that cannot be
    done (one core, other Python threads, no fork), or the child fails in any way or takes longer than ``timeout_s``,
    the returned function does the work here, so that errors are raised as usual.
    """
    alone = threading.active_count() == 1 and (os.cpu_count() or 1) > 1 and sys.platform == "linux"
    if not alone:
        return work
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_do, args=(work, ours, theirs), daemon=True)
    child.start()
    theirs.close()

    def value() -> T:
        try:
            if ours.poll(timeout_s):
                found: T = ours.recv()
                return found
        except EOFError:
            pass  # it failed: do it here, and meet the error here
        finally:
            ours.close()
            child.kill()
            child.join()
        return work()

    return value


def _do(work: Callable[[], T], theirs: Connection, ours: Connection) -> None:
    """In the child: send the value and end at once, without the parent's clean-up."""
    theirs.close()
    try:
        ours.send(work())
    finally:
        os._exit(0)
