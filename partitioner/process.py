"""What a process does as one: keeps freed memory, ends on Ctrl-C and after its threads, works in a fork beside it."""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, TypeVar

Result = TypeVar("Result")

BLOCK_BYTES = 31 << 20  # just below the 32 MiB up to which glibc adapts


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of up to BLOCK_BYTES for this process, instead of giving them back to the system.

    It does so once the process has freed a large block, which this function makes it do, and before that the memory
    is faulted in anew by every call: page faults were a tenth of a denoiser's step on a CPU. At most twice
    BLOCK_BYTES stay unused.
    """
    import torch

    torch.empty(BLOCK_BYTES, dtype=torch.uint8)


def open_standard_files() -> None:
    """Give the numbers of standard streams that are closed to /dev/null, before some other file gets one of them.

    What a library, or a process that is started, writes to its stderr would go to that file.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # the lowest one that is free
        os.set_inheritable(number, True)
    os.close(number)


INTERRUPTED = 130  # exit code of a command that Ctrl-C ended, as a shell reports it


def interrupted(program: str) -> int:
    """Say on stderr that a command was interrupted; to be called on KeyboardInterrupt.

    Args:
        program: Name of the command.

    Returns:
        The command's exit code.
    """
    # CPython remembers an interrupt that is raised inside exec(str), which dataclasses call, as unhandled, and would
    # end ``python -m`` by the signal and not with the exit code. The next exec(str) makes it forget.
    exec("")
    _say_last(f"{program}: interrupted")
    return INTERRUPTED


_AGAIN_S = 0.01  # until a signal is sent again whose exception was lost
TERMINATED = 143  # exit code of a command that SIGTERM ended


class Terminated(BaseException):
    """Raised at SIGTERM, so that everything is closed on the way out."""


def run_until_stopped(program: str, work: Callable[[], Result]) -> Result | int:
    """Run a command; Ctrl-C and SIGTERM end it with one message, however often they come.

    Each raises KeyboardInterrupt or Terminated until the work has ended by that, and is ignored after.

    Args:
        program: Name of the command.
        work: All that it does.

    Returns:
        What the work gives; where a signal came, the command's exit code for the first one.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    came: list[int] = []
    ends = losing = False

    def stop(number: int, _frame: Any) -> None:
        came.append(number)
        if not ends and not losing:
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    def unraisable(given: Any) -> None:
        nonlocal losing
        losing = True
        if not came or not issubclass(given.exc_type, (KeyboardInterrupt, Terminated)):
            before_hook(given)
        elif not ends:  # Python has lost it, as in a finalizer: once more, when that has ended
            again = threading.Timer(_AGAIN_S, signal.pthread_kill, (threading.main_thread().ident, came[0]))
            again.daemon = True
            again.start()
        losing = False

    before_hook = sys.unraisablehook
    before = {
        number: signal.signal(number, stop)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) != signal.SIG_IGN  # as of a shell's background jobs
    }
    result: Result | int = 0
    ended_by = None
    try:
        try:
            sys.unraisablehook = unraisable
            result = work()
        finally:
            ends = True
    except KeyboardInterrupt:
        ended_by = signal.SIGINT
    except Terminated:
        ended_by = signal.SIGTERM
    except BaseException:
        if not came:  # else it was raised in the wake of that
            raise
    finally:
        sys.unraisablehook = before_hook
        for number, handler in before.items():
            # Python's own end restores every handler but this one, and would let a late signal kill the process.
            signal.signal(number, signal.SIG_IGN if came else handler)
    first = came[0] if came else ended_by
    if first is None:
        return result
    if first == signal.SIGINT:
        return interrupted(program)
    _say_last(f"{program}: terminated")
    return TERMINATED


def _say_last(sentence: str) -> None:
    """Say on stderr why a command ends: on a line of its own, and after all that its work has to say.

    A progress bar that another signal has kept from being closed, and that frames of an error which somebody keeps
    refer to, would draw itself later, and one that was stopped on its way has left its line open.
    """
    gc.collect()
    is_in_line = getattr(sys.stderr, "is_in_line", False)
    print("\n" if is_in_line else "", sentence, sep="", file=sys.stderr)


def raise_interrupt_behind(error: BaseException) -> None:
    """Raise the interrupt (Ctrl-C, or what another signal's handler raises) in whose wake an error was raised, if any.

    Torch's modes, which a trace enters by the thousand, may fail when they are left because of one.

    Args:
        error: That was caught.
    """
    behind: BaseException | None = error
    while behind is not None:
        if not isinstance(behind, (Exception, GeneratorExit)):
            raise behind
        behind = behind.__cause__ or behind.__context__


def end_at_once(code: int) -> None:
    """End this process, unless a thread or a process of its own is at work; Python would free every object first.

    After tracing that takes seconds.

    Args:
        code: The exit code.
    """
    if threading.active_count() == 1 and not multiprocessing.active_children():
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # it is where the process was started with a closed one
                stream.flush()
        os._exit(code)


LATE_S = 10.0  # how long Python's end waits for threads that should have ended
_late: list[threading.Thread] = []


def await_threads(threads: Iterable[threading.Thread], timeout_s: float) -> None:
    """Wait until daemon threads have ended, but not this one; for those that are late Python's end waits once more.

    A thread that comes out of torch while Python ends cannot have the interpreter any more, and takes the whole process
    down with it (std::terminate, SIGABRT).

    Args:
        threads: They have been told to end.
        timeout_s: How long to wait for each now.
    """
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(timeout=timeout_s)
            if thread.is_alive():
                _late.append(thread)


@atexit.register
def _await_late() -> None:
    deadline = time.monotonic() + LATE_S
    while _late:
        _late.pop().join(timeout=max(0.0, deadline - time.monotonic()))


def beside(work: Callable[[], Result], timeout_s: float = 300.0) -> Callable[[], Result]:
    """Start a function in a forked process, at the same time as what this process does next.

    Only for a process that has started no threads which the function needs, for a fork has none of them. Where it
    cannot fork (one core, other Python threads, not Linux), and where the forked process fails or takes too long, the
    returned function does the work in this process, so that errors are raised as usual.

    Args:
        work: The function; its value must pickle.
        timeout_s: How long to wait for the forked process.

    Returns:
        A function that waits for the value and returns it.

    >>> waiting = beside(lambda: 6 * 7)
    >>> waiting()
    42
    """
    alone = threading.active_count() == 1 and (os.cpu_count() or 1) > 1 and sys.platform == "linux"
    if not alone:
        return work
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_do, args=(work, ours, theirs), daemon=True)
    with interrupts_put_off():  # Python loses what is raised in the functions that it calls around a fork
        child.start()
    theirs.close()

    def value() -> Result:
        try:
            if ours.poll(timeout_s):
                found: Result = ours.recv()
                return found
        except EOFError:
            pass  # it failed: do the work here, where the error is raised
        finally:
            ours.close()
            child.kill()
            child.join()
        return work()

    return value


@contextmanager
def interrupts_put_off() -> Iterator[list[int]]:
    """Have what signal handlers raise, as for Ctrl-C, wait for the block's end, so that nothing is done by halves.

    Python runs them in the main thread; in others there is nothing to put off.

    Yields:
        The signals that have come so far; each is handled once at the block's end.
    """
    came: list[int] = []
    handlers = _python_handlers() if threading.current_thread() is threading.main_thread() else {}
    try:
        for number in handlers:
            signal.signal(number, lambda number, _: came.append(number))
        yield came
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(came):
            signal.raise_signal(number)


def _python_handlers() -> dict[int, Any]:
    """Signals that a function of Python's handles, and the function."""
    found = {number: signal.getsignal(number) for number in signal.valid_signals()}
    return {number: handler for number, handler in found.items() if callable(handler)}


def _do(work: Callable[[], Result], theirs: Connection, ours: Connection) -> None:
    """In the forked process: send the value and end at once, without the clean-up that belongs to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    theirs.close()
    try:
        ours.send(work())
    finally:
        os._exit(0)
