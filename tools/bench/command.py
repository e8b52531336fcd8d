"""What the benchmarks' commands have in common: counts among their options, and how they end."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from partitioner.errors import PartitionerError
from runtime.errors import EngineError
from tools.bench.environment import environment


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option that is a number, of ``least`` or more."""

    def parsed(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"expected {least} or more, got {text}")
        return number

    parsed.__name__ = "int"  # what argparse calls it where the text is no number
    return parsed


def say(text: str) -> None:
    """Tell of progress."""
    print(text, file=sys.stderr, flush=True)


def run(
    module: str,
    measure: Callable[[], list[dict[str, Any]]],
    table: Callable[[dict[str, Any]], str],
    *,
    as_json: bool,
) -> int:
    """Measure, and print one document.

    Args:
        module: that was called.
        measure: gives the results.
        table: what is made of the document for people.
        as_json: print the document itself.

    Returns:
        The exit code: 0 when done, 2 for what cannot be planned, 5 if a rank failed.
    """
    try:
        results = measure()
    except PartitionerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (EngineError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 5
    document = {"environment": environment(module), "results": results}
    print(json.dumps(document, indent=1) if as_json else table(document))
    return 0
