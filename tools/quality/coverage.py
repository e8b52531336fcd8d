"""Says for which cases a quality profile's figures were measured, and for which they are interpolated.

    python -m tools.quality.coverage --write docs/results/coverage.md

A page of Markdown: of each sampler and guidance scale whether look-ahead was measured at that scale, lies between two
that were, or has no figure. Nothing is run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from profiles.measured_figure import MeasuredFigure, QualityCase, expected_figure
from profiles.quality_profile import SHIPPED, QualityProfile
from tools.command import command
from tools.pages import give_page

SCALES = (1.0, 3.0, 5.0, 7.5, 10.0)
STEPS = (20, 28, 50)
COMPONENTS = (2, 3, 4)

HEAD = """# Measured and interpolated

What the figures of `profiles/quality.json` rest on, which `partition-model` prints: look-ahead with so many components.
In each cell, for 20, 28 and 50 steps:

- a number: measured at this guidance scale, with so many steps, which are the nearest;
- *between 3 and 5*: interpolated between two guidance scales that were measured;
- a dash: no figure; plans say that it was not measured.

Made by `python -m tools.quality.coverage --write docs/results/coverage.md`; a test holds it to the profile.
[Quality](quality.md#what-counts-for-a-plan) has the rules.
"""


def coverage_page(profile: QualityProfile) -> str:
    """The page of a profile."""
    samplers = sorted({row.scheduler for row in profile.rows if row.predictor == "lookahead"})
    parts = [HEAD]
    for components in COMPONENTS:
        own = [row for row in profile.rows if row.components == components and row.predictor == "lookahead"]
        lines = [["sampler", *(f"guidance {scale:g}" for scale in SCALES)], ["---"] * (1 + len(SCALES))]
        for name in samplers:
            cells = []
            for scale in SCALES:
                cases = [QualityCase(steps, name, guidance_scale=scale) for steps in STEPS]
                words = [_word(expected_figure(own, components, "lookahead", case)) for case in cases]
                cells.append(words[0] if len(set(words)) == 1 else ", ".join(words))
            lines.append([f"`{name}`", *cells])
        table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        parts.append(f"## {components} components\n\n{table}")
    return "\n".join(parts)


def _word(figure: MeasuredFigure | None) -> str:
    if figure is None or figure.beyond:
        return "-"
    if len(figure.between) == 1:
        return str(figure.steps[0])
    return f"*between {figure.between[0]:g} and {figure.between[1]:g}*"


@command("tools.quality.coverage")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit code 0 when done, 2 for a file that cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m tools.quality.coverage", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--profile", type=Path, default=SHIPPED, metavar="FILE", help="default: the shipped one")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page there instead of printing it")
    options = parser.parse_args(argv)
    give_page(coverage_page(QualityProfile.load(options.profile)), options.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
