"""document_page: what was measured of diffusers' schedulers, as a page of Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

HEAD = """# Every scheduler

What the engine finds out about a scheduler class of diffusers, and how close it then comes to the sequential output: of
the classes that the command below names, of all where it names none. Each is run by the
shipped denoiser that it suits, with a look-ahead plan of two components and a warm-up of 4 calls.

Cells have three figures: the PSNR in dB against the sequential output of the same seeds, medians over the samples, of

1. the engine with that plan, under its default guard (26 dB);
2. the same plan in async mode with `hold`, AsyncDiff's rule;
3. fewer sequential steps in the time of the first (predicted; exact calls counted).

In brackets: calls run exactly, in look-ahead and async. Bold: the first is more than 1 dB below the second. The
guard makes calls exact where more of an error would be passed on, and all of them where later latents cannot be
predicted: such plans win no time. Exact calls differ from sequential ones by rounding, for the rows of a batch are
computed in two parts (`microbatches=1`: same bits); 100 dB is the most that is shown, and what a sampler makes of
rounding is what is missing.

`DPMSolverSDEScheduler`, `FlowMatchLCMScheduler` and `LTXEulerAncestralRFScheduler` draw noise that the call's generator
does not decide: two sequential runs of one seed differ, and the figures of these three say nothing. Few
samples say little of one cell: [Cell by cell](cells-64.md) has 64 of the samplers that pipelines default to.
"""


def document_page(known: dict[str, Any]) -> str:
    """The page of a results document of tools.quality.schedulers."""
    versions = ", ".join(f"{name} {version}" for name, version in known["versions"].items())
    made = f"{known['date']}; {versions}; {known['samples']} samples:"
    parts = [HEAD, f"{made}\n\n```sh\n{known['command']}\n```\n"]
    parts.append("## What the probe says\n\n" + _table(("scheduler", "denoiser", "what its steps do"), _said(known)))
    for steps in sorted({row["steps"] for row in known["rows"]}):
        scales = sorted({row["guidance"] for row in known["rows"]})
        heads = ("scheduler", *(f"guidance {scale:g}" for scale in scales))
        parts.append(f"## {steps} steps\n\n" + _table(heads, _measured(known, steps, scales)))
    if known["not_run"]:
        why = [(f"`{name}`", _cell(reason)) for name, reason in sorted(known["not_run"].items())]
        parts.append("## Not run by these denoisers\n\n" + _table(("scheduler", "why"), why))
    return "\n".join(parts)


def _said(known: dict[str, Any]) -> list[tuple[str, ...]]:
    said = {(row["scheduler"], row["denoiser"]): row["says"] for row in known["rows"]}
    return [(f"`{name}`", f"`{denoiser}`", _cell(text)) for (name, denoiser), text in sorted(said.items())]


def _measured(known: dict[str, Any], steps: int, scales: list[float]) -> list[tuple[str, ...]]:
    rows = {(row["scheduler"], row["guidance"]): row for row in known["rows"] if row["steps"] == steps}
    names = sorted({name for name, _ in rows})
    return [(f"`{name}`", *(_figures(rows.get((name, scale))) for scale in scales)) for name in names]


def _figures(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    ahead, held, fewer = row["lookahead_db"], row["hold_db"], row["fewer_db"]
    first = f"**{ahead}**" if ahead < held - 1 else f"{ahead}"
    return f"{first}, {held}, {fewer} ({'+'.join(map(str, row['calls']))})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
