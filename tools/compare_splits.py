"""Measures splits: step time over its lower bound, MB per step and staleness, beside AsyncDiff's published splits.

    python -m tools.compare_splits [--model sdxl] [--update | --sweep]

Costs are a roofline of an H200 at each model's usual size. First table: devices without communication costs, so that
only the split counts. Second table: devices joined by NVLink; of the splits that the solver offers, the fastest one
that is no worse than AsyncDiff's in any figure. The figures are compared with golden_splits.json, where none may ever
become worse: exit code 1 if one has; --update writes the improved ones. --sweep shows instead what a slower step buys
in staleness and bytes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from partitioner.search.solver import Solver
from profiles.json_files import canonical_bytes, read_json, write_atomic
from tools.command import command
from tools.published.golden import GOLDEN, merged, worse_rows
from tools.published.splits import MODELS, document, sweep_rows, traced
from tools.published.splits_table import sweep_table, table


@command("tools.compare_splits")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; exit code 0, or 1 where a figure is worse than its golden one or has none."""
    parser = argparse.ArgumentParser(prog="python -m tools.compare_splits", description=__doc__.split("\n")[0])
    parser.add_argument("--model", action="append", choices=MODELS, help="may be repeated (default: all)")
    parser.add_argument("--update", action="store_true", help="write what has improved, or is new, to the golden file")
    parser.add_argument("--sweep", action="store_true", help="show what a slower step buys in staleness and bytes")
    options = parser.parse_args(arguments)
    if options.sweep:
        print(sweep_table([row for m in options.model or MODELS for row in sweep_rows(m, Solver(traced(m)[1]))]))
        return 0
    found = document(options.model or MODELS)
    print(table(found))
    golden: Any = read_json(GOLDEN, 1_000_000) if GOLDEN.exists() else {"gaps": [], "asyncdiff": []}
    complaints = worse_rows(found, golden)
    if options.update:
        complaints = [text for text in complaints if not text.endswith("is not in the golden file")]
    for text in complaints:
        print(text, file=sys.stderr)
    if options.update and not complaints:
        write_atomic(GOLDEN, canonical_bytes(merged(golden, found)), overwrite=True)
    return 1 if complaints else 0


if __name__ == "__main__":
    raise SystemExit(main())
