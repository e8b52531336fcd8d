"""Compares AsyncDiff's published speed-ups (x) with simulated ones, and with what this project's plans reach.

    python -m tools.compare_published [--model sd15] [--json]

Everything printed but the published columns is SIMULATED, on the machine of tools.published.machine. AsyncDiff is
simulated as its code runs: its own splits, a blocking broadcast of every hooked module's output, the whole pipeline on
every rank. Latencies are those of a whole pipeline call, so they include decoding the latents.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from tools.command import command
from tools.published.paper import read_published
from tools.published.speedups import compare
from tools.published.speedups_table import table


@command("tools.compare_published")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; exit code 0."""
    published = read_published()
    parser = argparse.ArgumentParser(prog="python -m tools.compare_published", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--model",
        action="append",
        choices=list(published["models"]),
        metavar="NAME",
        help="may be repeated (default: all)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    options = parser.parse_args(arguments)
    document = compare(options.model or list(published["models"]), published)
    print(json.dumps(document, indent=1, allow_nan=False) if options.json else table(document))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
