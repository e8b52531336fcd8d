"""Finds out which denoiser and pipeline classes of diffusers run, and makes docs/results/support.md.

    python -m tools.support [--only flux wan] [--jobs 2] [--results FILE] [--again] [--json]

What was found is kept in the results file after each class, and not tried again by the next run, unless with --again
or with other versions of the packages. The page is made of the file; with --only neither it nor the file is written,
unless the file is named.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.command import command
from tools.pages import versions
from tools.support.results import chosen, read_results, try_all, write_results
from tools.support.table import page

PAGE = Path("docs/results/support.md")
RESULTS = PAGE.with_suffix(".json")


@command("tools.support")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; exit code 2 for a wrong option."""
    parser = argparse.ArgumentParser(prog="python -m tools.support", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only",
        metavar="TEXT",
        nargs="*",
        default=[],
        help="only classes whose name contains one of these, in any case",
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="how many classes at once; default: 1")
    parser.add_argument("--results", type=Path, metavar="FILE", help=f"default: {RESULTS}, if all is run")
    parser.add_argument("--again", action="store_true", help="try also what the results file has")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON instead of the page")
    options = parser.parse_args(arguments)
    tasks = chosen(options.only)
    if not tasks:
        parser.error(f"no class contains {' or '.join(map(repr, options.only))}")
    kept = options.results or (None if options.only else RESULTS)
    packages = versions(("torch", "diffusers", "transformers", "peft"))
    found = read_results(kept, packages)
    todo = [(kind, name) for kind, name in tasks if options.again or name not in found[kind]]
    for kind, name, row in try_all(todo, options.jobs):
        found[kind][name] = row
        if kept:
            write_results(kept, found)
    text = page(found)
    if kept == RESULTS:
        PAGE.write_text(text, encoding="utf-8")
    print(json.dumps(found, indent=1) if options.json else text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
