"""run_command: how every command ends: in one sentence where something is wrong, and with a documented exit code.

What a command prints may go to a pipe that nobody reads any more, to a full disk, or nowhere at all. None of that ends
its work: what was asked for is a file as often as a text.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from partitioner.errors import UsageError, first_line
from partitioner.process import interrupted, open_standard_files, run_until_stopped

UNFORESEEN = 1  # exit code
DEBUG = "--debug"
MOST_SHOWN = 1000  # characters of a line


def run_command(program: str, work: Callable[[], str | int], arguments: Sequence[str] | None = None) -> int:
    """Do a command's work, print its result, and say on stderr in one sentence why there is none.

    Errors with an ``exit_code`` are the project's own. Ctrl-C is exit code 130 and SIGTERM 143 (``run_until_stopped``).
    A reader who has left stdout is no error; a stdout that cannot be written to is exit code 2, and a stderr that
    cannot be is passed over in silence.

    Args:
        program: What sentences begin with, such as "run-plan".
        work: Parses and does all; returns the text for stdout, or an exit code where it has printed that itself.
        arguments: Of a command that has ``--debug``: with it a traceback stands before the sentence, and without it
            errors that nobody foresaw are one sentence, too, and exit code 1. None: those are not caught.

    Returns:
        The exit code.
    """
    with _standard_streams() as (out, err):
        debug = arguments is not None and DEBUG in arguments
        try:
            result = run_until_stopped(program, work)
            code = result if isinstance(result, int) else 0
            if isinstance(result, str):
                print(_readable(result))
        except SystemExit as end:  # argparse: --help, or an argument that is wrong
            code = end.code if isinstance(end.code, int) else UNFORESEEN if end.code else 0
        except KeyboardInterrupt:
            code = interrupted(program)
        except Exception as error:
            is_foreseen = hasattr(error, "exit_code")
            if not is_foreseen and arguments is None:
                raise
            if debug:
                traceback.print_exception(error)
            sentence = str(error) if is_foreseen else _unforeseen(error, debug)
            print(f"{program}: error: {_cut(sentence)}", file=err)
            code = getattr(error, "exit_code", UNFORESEEN)
        out.flush()
        if out.failure is not None and not isinstance(out.failure, BrokenPipeError) and not code:
            print(f"{program}: error: the result cannot be written to stdout: {out.failure.strerror}", file=err)
            code = UsageError.exit_code
        err.flush()
        return code


def _unforeseen(error: Exception, debug: bool) -> str:
    what = type(error).__name__
    said = f"{what}: {first_line(error)}" if str(error).strip() else what
    return f"{said} (this was not foreseen{'' if debug else f'; {DEBUG} shows where it comes from'})"


def _cut(text: str) -> str:
    """A message without the middle of a line that repeats what a user gave, or a library had, at any length."""
    half = MOST_SHOWN // 2
    lines = _readable(text).split("\n")
    return "\n".join(line if len(line) <= MOST_SHOWN else f"{line[:half]}…{line[-half:]}" for line in lines)


def _readable(text: str) -> str:
    r"""A text with escapes for what terminals obey instead of showing it, which files from elsewhere may hold.

    >>> _readable("a\x1b[2J\nb")
    'a\\x1b[2J\nb'
    """
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


class CommandParser(argparse.ArgumentParser):
    """A parser of a command that has ``--debug``; a wrong argument is one sentence instead of the whole usage."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_argument(DEBUG, action="store_true", help="show also where an error comes from, as a traceback")

    def error(self, message: str) -> NoReturn:
        self.exit(UsageError.exit_code, f"{self.prog}: error: {_cut(message)}; see {self.prog} --help\n")


class _Stream:
    """A standard stream that ends no work: what cannot be written is dropped.

    Attributes:
        failure: why it was dropped, once that was so.
        is_in_line: whether the last line that was written has no end.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.failure: OSError | None = None
        self.is_in_line = False

    def write(self, text: str) -> int:
        if text:
            self.is_in_line = not text.endswith(("\n", "\r"))
        try:
            self._stream.write(text)
        except UnicodeEncodeError as error:
            return self.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        except OSError as error:
            self._drop(error)
        return len(text)

    def writelines(self, lines: Iterator[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _drop(self, error: OSError) -> None:
        """Let the stream lead nowhere from now on, for libraries and for Python's own end, which writes the rest."""
        if self.failure is None:
            self.failure = error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nowhere, self._stream.fileno())
            except io.UnsupportedOperation:  # a stream of no file
                pass
            finally:
                os.close(nowhere)


@contextmanager
def _standard_streams() -> Iterator[tuple[_Stream, _Stream]]:
    """Inside it sys.stdout and sys.stderr are streams that end no work; those that were closed lead nowhere."""
    open_standard_files()
    before = sys.stdout, sys.stderr
    out, err = (_Stream(open(os.devnull, "w") if stream is None else stream) for stream in before)  # noqa: SIM115
    sys.stdout, sys.stderr = out, err
    try:
        yield out, err
    finally:
        sys.stdout, sys.stderr = before
