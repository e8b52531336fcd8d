"""summary: what the measured cells say all together, line by line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from tools.pictures.pipelines import HELD_OUT

MeasuredCells = Sequence[dict[str, Any]]
BETTER_DB = 3.0
MOSTLY = 0.98  # of the calls
WORST = 10  # cells that are listed
TARGET_DB = 45.0


def measured(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells of a results document that did not fail."""
    return [cell for cell in results["cells"].values() if "failed" not in cell]


def margin(cell: dict[str, Any]) -> float:
    """By how many dB the engine is nearer to the sequential output than fewer steps."""
    return float(cell["engine"]["psnr_db"] - cell["fewer"]["psnr_db"])


def summary(cells: MeasuredCells) -> list[str]:
    """Lines of text: of two components for each quality and each denoiser, then of what the guard did in all cells."""
    lines = []
    for quality in dict.fromkeys(cell["quality"] for cell in cells):
        asked = [cell for cell in cells if cell["quality"] == quality]
        two = [cell for cell in asked if (cell["branches"], cell["components"]) == (1, 2)]
        for what, own in _groups(two):
            lines.append(f"quality {quality}, two components, {what}: {_counts(own)}")
        lines += [f"quality {quality}: {line}" for line in _of_all(asked)]
    return lines


def _groups(cells: MeasuredCells) -> Iterator[tuple[str, MeasuredCells]]:
    """All cells of denoisers that choices were made on, those of each denoiser, and those of held-out ones."""
    chosen_on = [cell for cell in cells if cell["denoiser"] not in HELD_OUT]
    if chosen_on:
        yield "all denoisers that choices were made on", chosen_on
    for denoiser in dict.fromkeys(cell["denoiser"] for cell in cells):
        name = f"{denoiser} (held out)" if denoiser in HELD_OUT else denoiser
        yield name, [cell for cell in cells if cell["denoiser"] == denoiser]


def looks_ahead(cell: dict[str, Any]) -> bool:
    """Whether calls of a cell were not exact, but for a few: else it is the sequential output, up to rounding."""
    return bool(cell["exact"] < MOSTLY)


def _counts(cells: MeasuredCells) -> str:
    ahead = [cell for cell in cells if looks_ahead(cell)]
    text = f"{MOSTLY:.0%} of the calls and more exact in {_share(len(cells) - len(ahead), len(cells))} cells"
    if not ahead:
        return text
    margins = [margin(cell) for cell in ahead]
    near, better = sum(each >= 0 for each in margins), sum(each >= BETTER_DB for each in margins)
    return (
        f"{text}; of the others at least as near as fewer steps {_share(near, len(ahead))}, {BETTER_DB:g} dB better "
        f"{_share(better, len(ahead))} (median margin {median(margins):+.1f} dB, speed-up "
        f"{median(cell['speedup'] for cell in ahead):.2f}x)"
    )


def _of_all(cells: MeasuredCells) -> Iterator[str]:
    alike = [_is_alike(cell) for cell in cells]
    yield (
        f"agreement that of sequential within noise in {_share(sum(a for a, _ in alike), len(cells))} cells, Fréchet "
        f"distance in {_share(sum(f for _, f in alike), len(cells))} (two standard errors)"
    )
    pictures = sum(cell["samples"] for cell in cells)
    behind = sum(round(cell["behind_fewer"] * cell["samples"]) for cell in cells)
    yield f"{_share(behind, pictures)} pictures further from sequential than those of fewer steps"
    bound = [cell for cell in cells if cell["bound_db"] is not None and looks_ahead(cell)]
    if bound:
        below = sum(round(cell["below_bound"] * cell["samples"]) for cell in bound)
        pictures = sum(cell["samples"] for cell in bound)
        yield f"{_share(below, pictures)} pictures below the guard's bound, of cells that are not exact"
        fooled = [cell for cell in bound if cell["below_bound"] > 0.01]
        yield f"{_share(len(fooled), len(bound))} of these cells have more than 1 % of their pictures below it"
    exact = [cell["exact"] for cell in cells]
    whole = sum(share == 1 for share in exact)
    yield f"calls exact: median {median(exact):.0%}, at most {max(exact):.0%}; all of them in {whole} cells"


def _is_alike(cell: dict[str, Any]) -> tuple[bool, bool]:
    """Whether agreement and Fréchet distance are those of the sequential output within two standard errors."""
    engine, sequential = cell["engine"], cell["sequential"]
    agreement = sequential["agreement"] - engine["agreement"] <= 2 * engine["agreement_noise"] + 1e-4
    return agreement, engine["frechet"] - sequential["frechet"] <= 2 * engine["frechet_noise"] + 1e-4


def _share(count: int, of: int) -> str:
    return f"{count} of {of} ({count / max(1, of):.1%})"


def worst(cells: MeasuredCells) -> list[dict[str, Any]]:
    """The cells of two components in which the engine is least good beside fewer steps, the worst one first."""
    two = [cell for cell in cells if cell["components"] == 2 and cell["quality"] != "off"]
    return sorted(two, key=margin)[:WORST]


def targets(cells: MeasuredCells, branches: int) -> list[dict[str, Any]]:
    """The cells of two components of usual samplers where people are: 20 to 28 steps, guidance 7.5, flow matching 4.5.

    They are to have TARGET_DB at ``speedup_wanted``.
    """
    return [
        cell
        for cell in cells
        if (cell["branches"], cell["components"]) == (branches, 2)
        and cell["sampler"] in ("ddim", "dpmpp", "pndm", "flow")
        and 20 <= cell["steps"] <= 28
        and cell["guidance"] == (4.5 if cell["sampler"] == "flow" else 7.5)
    ]


def speedup_wanted(branches: int) -> float:
    """Of the cells of ``targets``: halves of the guidance batch are exact, and double it."""
    return 1.6 * branches


def is_met(cell: dict[str, Any]) -> bool:
    """Whether a cell of ``targets`` is as it is to be."""
    return bool(cell["engine"]["psnr_db"] >= TARGET_DB and cell["speedup"] >= speedup_wanted(cell["branches"]))
