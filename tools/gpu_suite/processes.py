"""Processes of parts: each has its output in a log, ends with all that it has started, and says where it hung."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

WORDS_S = 2.0  # a process that is to end has this long to write where it is


class CommandProcess:
    """``python -m command`` as a process group of its own.

    Args:
        command: the module and its arguments.
        log: gets what it prints.
        environment: changes to this process's.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-m", *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
                start_new_session=True,  # so that what it starts ends with it
            )

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    def end(self) -> None:
        """Kill it and all that it has started. One that runs has its threads' stacks written to the log first."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGABRT)  # at which faulthandler writes them
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(WORDS_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
