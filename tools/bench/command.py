"""What the benchmarks' commands have in common: progress, and the document that they print."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from tools.bench.environment import environment


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
        The exit code, 0.

    Raises:
        PartitionerError: something cannot be planned.
        EngineError: a rank failed.
    """
    document = {"environment": environment(module), "results": measure()}
    print(json.dumps(document, indent=1) if as_json else table(document))
    return 0
