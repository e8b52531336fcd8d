"""Runs the commands on mutated plans, profiles, pipeline folders and weights, and counts how they end.

python -m tools.mutate --runs 500
python -m tools.mutate --kinds folders --only 17
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from partitioner.tables import table_text
from tools.command import command
from tools.mutate.cases import KINDS, Outcome, make_originals, run_case
from tools.mutate.forked import Limits


def parser() -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    made = argparse.ArgumentParser(prog="python -m tools.mutate", description=__doc__.splitlines()[0])
    made.add_argument("--kinds", default=",".join(KINDS), metavar="LIST", help=f"of {','.join(KINDS)} (default: all)")
    made.add_argument("--runs", type=int, default=500, metavar="N", help="mutations of each kind (default 500)")
    made.add_argument("--seed", type=int, default=0, metavar="S", help="of the mutations (default 0)")
    made.add_argument("--first", type=int, default=0, metavar="N", help="number of the first (default 0)")
    made.add_argument("--only", type=int, default=None, metavar="N", help="run one, and show all that it printed")
    return made


@command("tools.mutate")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 1 where a run ended otherwise than documented."""
    options = parser().parse_args(arguments)
    kinds = options.kinds.split(",")
    numbers = range(options.first, options.first + options.runs) if options.only is None else [options.only]
    found: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="mutated-") as made:
        originals = make_originals(Path(made, "originals"))
        gc.freeze()  # so that forked processes share memory
        for kind in kinds:
            for number in numbers:
                outcomes = run_case(kind, number, options.seed, originals, Path(made, "case"), Limits())
                found += outcomes
                for outcome in outcomes:
                    if options.only is not None:
                        print(" ".join(outcome.command.arguments), outcome.ended, sep="\n")
                        print(outcome.ended.output)
                    if outcome.wrong or options.only is not None:
                        wrong = outcome.wrong or "right"
                        print(f"{kind} {number}: {outcome.command.name}: {wrong}: {outcome.what}", file=sys.stderr)
                        print(f"    {(outcome.ended.output.strip().splitlines() or [''])[-1][:300]}", file=sys.stderr)
    print(_table(found))
    return int(any(outcome.wrong for outcome in found))


def _table(found: Sequence[Outcome]) -> str:
    """How many runs of each kind ended how, and the most that one of them took."""
    rows = []
    for kind, name in dict.fromkeys((outcome.kind, outcome.command.name) for outcome in found):
        own = [outcome for outcome in found if (outcome.kind, outcome.command.name) == (kind, name)]
        codes = Counter(outcome.ended.code for outcome in own)
        rows.append([
            kind, name, str(len(own)), str(sum(bool(outcome.wrong) for outcome in own)),
            ", ".join(f"{code}: {count}" for code, count in sorted(codes.items())),
            f"{max(outcome.ended.cpu_s for outcome in own):.1f}", f"{max(outcome.ended.wall_s for outcome in own):.1f}",
            f"{max(outcome.ended.memory_bytes for outcome in own) / 1e6:.0f}",
        ])  # fmt: skip
    header = ["mutated", "command", "runs", "wrong", "exit codes", "most s of processor", "most s", "most MB more"]
    return table_text(header, rows, left={0, 1, 4})


if __name__ == "__main__":
    raise SystemExit(main())
