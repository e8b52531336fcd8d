"""command: makes the ``main`` of a tool end as all commands of this project do."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from partitioner.command import run_command

P = ParamSpec("P")


def command(program: str) -> Callable[[Callable[P, int]], Callable[P, int]]:
    """Decorate a ``main`` that prints its results and returns an exit code, or raises an error that has one.

    What the decorated one does about streams that cannot be written to, wrong arguments, signals and errors,
    ``run_command`` says. An error that nobody foresaw is raised with its traceback: those who use the tools have the
    sources at hand.

    Args:
        program: What sentences on stderr begin with, such as "tools.quality".
    """

    def decorate(main: Callable[P, int]) -> Callable[P, int]:
        @wraps(main)
        def run(*args: P.args, **kwargs: P.kwargs) -> int:
            return run_command(program, lambda: main(*args, **kwargs))

        return run

    return decorate
