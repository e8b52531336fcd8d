"""The matrix as a Markdown page, and as a table in a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from tools.features.cell import WRONG, Cell, Verdict
from tools.pages import escaped

Cells = Mapping[str, Mapping[str, Cell]]  # row -> pipeline -> cell


def counts(cells: Cells) -> Counter[Verdict]:
    """How many cells have each verdict."""
    return Counter(cell.verdict for row in cells.values() for cell in row.values())


def page(cells: Cells, pipelines: list[str], environment: Mapping[str, str]) -> str:
    """The page docs/results/features.md.

    Args:
        cells: by row and pipeline.
        pipelines: the columns, in order.
        environment: what was run where and when, by name.
    """
    found = counts(cells)
    figures = ", ".join(
        f"{found[verdict]} {verdict}" for verdict in ("equal", "refused", "n/a", *WRONG) if found[verdict]
    )
    lines = [
        "# Features",
        "",
        "What users do to a pipeline, done to two equal small ones with random weights: one unmodified, one inside",
        "`parallelize(..., exact=True)` with a plan for two devices. **Equal**: every call gave the same bits; rows",
        '"planned by parallelize" have a half of the guidance batch on each device, which rounds differently (to',
        "1e-4 of the largest value). **Refused**: an error said in a sentence what is not done; afterwards the",
        "pipeline worked and its weights were whole. n/a: the pipeline has no such feature, or itself raises. Made by",
        "the command below, which fails if any cell differs from the pipeline, crashes, or proves nothing.",
        "",
        *(f"- {name}: {value}" for name, value in environment.items()),
        f"- cells: {figures}",
        "",
        "| feature | " + " | ".join(pipelines) + " |",
        "|---" * (len(pipelines) + 1) + "|",
    ]
    notes: dict[str, int] = {}
    for row, by_pipeline in cells.items():
        texts = [_text(by_pipeline[name], notes) if name in by_pipeline else "" for name in pipelines]
        lines.append(f"| {row} | " + " | ".join(texts) + " |")
    lines += ["", "## What was said", "", *(f"{number}. {escaped(note)}" for note, number in notes.items()), ""]
    return "\n".join(lines)


def _text(cell: Cell, notes: dict[str, int]) -> str:
    """A cell's verdict and the number of its note."""
    figure = f" {cell.difference:.1g}" if cell.difference else ""
    name = cell.verdict if cell.verdict not in WRONG else f"**{cell.verdict}**"
    note = f" ({notes.setdefault(cell.detail, len(notes) + 1)})" if cell.detail else ""
    return name + figure + note
