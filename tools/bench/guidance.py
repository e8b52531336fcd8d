"""Times a step (ms) of pipelines that call their denoiser twice at each timestep, on one rank and on two.

    python -m tools.bench.guidance [--pipeline wan] [--steps 10] [--rounds 5] [--json]

The pipelines are diffusers' own, unmodified, around small denoisers with random weights (tools.bench.guided_pipelines);
a step is all calls of one timestep. On one rank nothing but the pipeline runs, on one thread. On two, ranks are two
processes of one thread each, and each computes one of the two calls: the second is begun with the first. Everything is
exact, so outputs are compared bit for bit. A pipeline that has cache contexts is also measured with such as do nothing.

A round is a generation of each; every other round in turned order. Figures are medians over the rounds; those of a step
leave out the first one of a generation, of which nothing is foreseen. Other work on the machine spoils them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch

from partitioner.limits import whole
from partitioner.tables import table_text
from tools.bench.command import run, say
from tools.bench.guidance_rounds import measure_guidance
from tools.bench.guided_pipelines import GUIDED_PIPELINES, TINY
from tools.command import command


@command("tools.bench.guidance")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; exit code 0 when done, 2 for a wrong option, 5 if a rank failed."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.guidance", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--pipeline", action="append", choices=tuple(GUIDED_PIPELINES), help="may be repeated (default: all)"
    )
    parser.add_argument("--steps", type=whole(2), default=10, metavar="N", help="of a generation (default: 10)")
    parser.add_argument("--rounds", type=whole(2), default=5, metavar="N", help="of measurements (default: 5)")
    parser.add_argument("--tiny", action="store_true", help="denoisers of a few ms, to try this out")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)

    def measure() -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for name in options.pipeline or GUIDED_PIPELINES:
            guided = GUIDED_PIPELINES[name]
            size = TINY if options.tiny else guided.size
            rows += measure_guidance(name, size, guided, options.steps, options.rounds, say)
        return rows

    return run("tools.bench.guidance", measure, lambda made: table(made["results"]), as_json=options.json)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows for people, one line each."""
    heads = ["pipeline", "contexts", "ms per call", "rest", "one rank, ms per step", "two ranks", "ratio", "generation",
             "equal", "foreseen", "wasted"]  # fmt: skip
    cells = [
        [
            row["pipeline"],
            "yes" if row["cache_contexts"] else "no",
            f"{row['call_ms']:.1f}",
            f"{row['rest_share']:.1%}",
            f"{row['one_rank_step_ms']:.1f}",
            f"{row['two_ranks_step_ms']:.1f}",
            f"{row['step_ratio']:.3f}",
            f"{row['generation_ratio']:.3f}",
            "yes" if row["bit_equal"] else f"{row['largest_difference']:.1e}",
            f"{row['foreseen_calls']} of {row['calls']}",
            str(row["wasted_calls"]),
        ]
        for row in rows
    ]
    return table_text(heads, cells, left={0, 1})


if __name__ == "__main__":
    sys.exit(main())
