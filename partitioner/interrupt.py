"""What every command does on Ctrl-C."""

from __future__ import annotations

import sys

INTERRUPTED = 130  # the exit code, as a shell would report it


def interrupted(program: str) -> int:
    """Say on stderr that ``program`` was interrupted; returns its exit code. To be called on KeyboardInterrupt."""
    # An interrupt that is raised inside exec(str), which dataclasses call, CPython remembers as unhandled: it would end
    # ``python -m`` by the signal and not by the exit code. It forgets at the next exec(str).
    exec("")
    print(f"{program}: interrupted", file=sys.stderr)
    return INTERRUPTED
