"""Compares this project with what AsyncDiff publishes: speed-ups (x) or splits (ms, MB, staleness).

python -m tools.published speedups    # the same as python -m tools.compare_published
python -m tools.published splits      # the same as python -m tools.compare_splits
"""

from __future__ import annotations

from collections.abc import Sequence

from tools import compare_published, compare_splits
from tools.subcommands import run_subcommand

COMMANDS = {
    "speedups": (compare_published.main, "published and simulated speed-ups (x) of whole pipeline calls"),
    "splits": (compare_splits.main, "step time over its lower bound, MB per step and staleness of splits"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one comparison; its exit code."""
    return run_subcommand("python -m tools.published", __doc__.split("\n")[0], COMMANDS, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
