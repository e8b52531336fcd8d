"""document_page: the measured cells as a page of Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tools.pages import escaped
from tools.quality.cells_summary import MeasuredCells, is_met, margin, measured, speedup_wanted, summary, targets, worst

HEAD = """# Cell by cell

How close the engine comes to the sequential output of the same seeds, for each sampler, guidance scale, number of
steps, denoiser of `tools/trained` and number of components; beside fewer sequential steps in the same time, which
anyone can have with one device. Measured through the engine's own code by `python -m tools.quality.cells`, which keeps
the cells in a file and goes on where it was stopped.

- A cell reads "median (worst) / fewer steps @ speed-up": PSNR in dB of the engine's pictures, the median and the worst
  of the samples, then the median of fewer steps. Bold: the engine is further away than fewer steps.
- The **speed-up** is the one that was had: calls that were run exactly are counted as such, at the times that the plan
  predicts (simulated, not measured). Each generation is compared with as many fewer steps as take its own time, to the
  last step that it leaves time for.
- Cells of DPM-Solver++, UniPC and PNDM of commits before b1b90a7 are without the rule that a call is exact whose error
  would be worth more than the call. 19 of DPM-Solver++ and UniPC at 5 and 7.5, measured again with it, are the same.
- **exact**: the share of exact calls, where it is more than half; all of them where the sampler's latents cannot be
  predicted (why is in a table below). **async**: without a guard (quality off) the engine runs these in async mode.
- Sequential pictures are made 64 at a time. Of the engine's, few are made in one call, as users do (how many, stands
  below): whether a call is exact holds for all of its pictures.
- Two branches of two components give the pictures of one branch of two: the halves of the guidance batch do not read
  each other. They are measured once; speed-up and fewer steps are of four devices.
- Agreement with the prompt and Fréchet distance (shipped classifier) are in the results file; the lines below count
  where they are no worse than sequential by more than two standard errors (of the paired difference; bootstrap).
"""


def document_page(results: dict[str, Any]) -> str:
    """The page of a results document of tools.quality.cells."""
    cells = measured(results)
    parts = [HEAD, _made(results, cells)]
    if cells:
        parts.append("## Summary\n\n" + "".join(f"- {line}\n" for line in summary(cells)))
        for branches in (1, 2):
            found = targets(cells, branches)
            if found:
                parts.append(_targets(found, branches))
        parts.append("## Worst beside fewer steps\n\nTwo components.\n\n" + _list(worst(cells)))
        for denoiser in dict.fromkeys(cell["denoiser"] for cell in cells):
            parts += _of_denoiser([cell for cell in cells if cell["denoiser"] == denoiser])
        parts.append(_notes(cells))
    failed = [(f"`{key}`", _cell(cell["failed"])) for key, cell in results["cells"].items() if "failed" in cell]
    if failed:
        parts.append("## Not measured\n\n" + _table(("cell", "why"), failed))
    return "\n".join(part for part in parts if part)


def _made(results: dict[str, Any], cells: MeasuredCells) -> str:
    commands = "\n".join(results["commands"])
    samples = sorted({cell["samples"] for cell in cells})
    chunks = sorted({cell["chunk"] for cell in cells})
    commits = ", ".join(dict.fromkeys(cell["commit"] for cell in cells))
    return (
        f"{results['date']}; {results['versions']}; {len(cells)} cells of {' or '.join(map(str, samples))} samples, "
        f"{' or '.join(map(str, chunks))} in a call; commit {commits}:\n\n```sh\n{commands}\n```\n"
    )


def _targets(cells: MeasuredCells, branches: int) -> str:
    met = sum(is_met(cell) for cell in cells)
    return (
        f"## 20 to 28 steps at usual guidance, {branches} x 2\n\n"
        f"Wanted: 45 dB at {speedup_wanted(branches):g}x. Met in {met} of {len(cells)} cells.\n\n" + _list(cells)
    )


def _list(cells: MeasuredCells) -> str:
    heads = ("denoiser", "sampler", "steps", "guidance", "quality", "median (worst)", "fewer steps", "margin")
    rows = [
        (
            cell["denoiser"],
            cell["sampler"],
            str(cell["steps"]),
            f"{cell['guidance']:g}",
            cell["quality"],
            f"{cell['engine']['psnr_db']:.1f} ({cell['engine']['worst_db']:.1f})",
            f"{cell['fewer']['psnr_db']:.1f} ({cell['fewer']['worst_db']:.1f}), {cell['fewer_steps']:g} steps",
            f"{margin(cell):+.1f}",
            f"{cell['speedup']:.2f}",
            f"{cell['exact']:.0%}",
        )
        for cell in cells
    ]
    return _table((*heads, "speed-up", "exact"), rows)


def _of_denoiser(cells: MeasuredCells) -> list[str]:
    parts = []
    for branches, components, quality in dict.fromkeys(map(_run_of, cells)):
        some = [cell for cell in cells if _run_of(cell) == (branches, components, quality)]
        scales = sorted({cell["guidance"] for cell in some})
        by_place = {(cell["sampler"], cell["steps"], cell["guidance"]): cell for cell in some}
        rows = [
            (sampler, str(steps), *(_figures(by_place.get((sampler, steps, scale))) for scale in scales))
            for sampler, steps in sorted({(cell["sampler"], cell["steps"]) for cell in some})
        ]
        title = f"## {some[0]['denoiser']}, {branches} x {components}, quality {quality}\n\n"
        parts.append(title + _table(("sampler", "steps", *(f"guidance {scale:g}" for scale in scales)), rows))
    return parts


def _run_of(cell: dict[str, Any]) -> tuple[int, int, str]:
    return cell["branches"], cell["components"], cell["quality"]


def _figures(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "-"
    engine = f"{cell['engine']['psnr_db']:.1f} ({cell['engine']['worst_db']:.1f})"
    mode = " async" if cell["lagged"] > 0 else f" {cell['exact']:.0%} exact" if cell["exact"] > 0.5 else ""
    first = f"**{engine}**" if margin(cell) < 0 else engine
    return f"{first} / {cell['fewer']['psnr_db']:.1f} @ {cell['speedup']:.2f}{mode}"


def _notes(cells: MeasuredCells) -> str:
    notes = dict.fromkeys((cell["sampler"], cell["note"]) for cell in cells if cell["note"])
    reasons = dict.fromkeys(why for cell in cells for why in cell["reasons"])
    text = f"## Why calls are exact or async\n\nExact: {', '.join(reasons) or 'none'}.\n"
    if notes:
        text += "\n" + _table(("sampler", "not foreseen because"), [(name, _cell(why)) for name, why in notes])
    return text


def _cell(text: str) -> str:
    return escaped(text).replace("|", "/")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
