"""The results as the page docs/results/support.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tools.pages import escaped
from tools.support.denoisers import DENOISERS, NOT_DENOISERS
from tools.support.pipelines import PIPELINES

_FOUND = Mapping[str, Mapping[str, Any]]


def page(found: Mapping[str, Any]) -> str:
    """The page.

    Args:
        found: As ``results.read_results`` gives it.
    """
    denoisers, pipelines = found["denoisers"], found["pipelines"]
    traced = [name for name, row in denoisers.items() if traces(row)]
    exact = [name for name, row in pipelines.items() if runs(row)]
    several = [row for row in pipelines.values() if (row.get("calls_per_step") or 0) > 1]
    lagged = [row for row in several if _share(row, "lagged") >= 0.8]
    foreseen = [row for row in several if _share(row, "foreseen") >= 0.8]
    return "\n".join(
        [
            "# What of diffusers runs",
            "",
            "Each denoiser class of diffusers, made small with random weights: traced, planned for two devices, and",
            "one exact call compared with the module's own. Each pipeline class, made small, saved to a folder and",
            "loaded from it: one call by a plan of two components that `parallelize` makes for it (given as `call`),",
            "exactly, twice async, and with look-ahead. **Calls per step**: how often the pipeline, with guidance on,",
            "calls its denoiser at one timestep. **Lagged**: of the calls of an async run that could have been (all",
            "but the first of each stream) those that were; the note says why others were not. **Foreseen**: in an",
            "exact run by a plan with a branch for each call of a step, of the calls neither of the first step nor",
            "the first of theirs those that were begun with that one. **Run at**: the commit; what has",
            "none is of 26 November 2026.",
            "Differences are the largest of any number of the result. **LoRA**: one added to the denoiser is honoured",
            "exactly. Made by `python -m tools.support`, which goes on where it was stopped; the results are in",
            "`support.json`. Published sizes have a page of their own: [Built-in names](models.md).",
            "",
            f"- versions: {found['versions']}",
            f"- denoiser classes: {len(traced)} of {len(denoisers)} trace",
            f"- pipeline classes: {len(exact)} of {len(pipelines)} run exactly, async repeatably, and with look-ahead",
            f"- of {len(several)} that call it twice or more per step, {len(lagged)} have 80 % or more of the calls",
            f"  lagged that could have been, and {len(foreseen)} as many foreseen",
            "",
            "## Denoisers",
            "",
            "| class | nodes | exact, differs by | LoRA | pipelines tried | note |",
            "|---|---|---|---|---|---|",
            *_denoiser_rows(denoisers, pipelines),
            "",
            "Not denoisers: " + "; ".join(f"{name}, {why}" for name, why in NOT_DENOISERS.items()) + ".",
            "",
            "## Pipelines",
            "",
            "| pipeline | denoiser | exact, differs by | async repeats | look-ahead runs | calls per step | lagged "
            "| foreseen | run at | note |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *_pipeline_rows(pipelines),
            "",
        ]
    )


def traces(row: Mapping[str, Any]) -> bool:
    """Whether a denoiser of the results was traced."""
    return row["failed"] not in ("build", "trace")


def runs(row: Mapping[str, Any]) -> bool:
    """Whether a pipeline of the results ran in each mode."""
    differs = max(row["difference"] or 0.0, row.get("branches_differ") or 0.0)
    return row["failed"] is None and differs <= 1e-4 and row["repeats"] and row["looks_ahead"]


def _denoiser_rows(denoisers: _FOUND, pipelines: _FOUND) -> Iterator[str]:
    for name in DENOISERS:
        if name not in denoisers:
            yield f"| {name} | | | | | not tried yet |"
        else:
            row = denoisers[name]
            users = [run for run in pipelines.values() if run["denoiser"] == name]
            tried = f"{sum(map(runs, users))} of {len(users)}" if users else ""
            lora = {"exact": "exact", "none": "takes none", None: ""}.get(row["lora"], "no")
            cells = [name, str(row["nodes"] or ""), _difference(row), lora, tried, _note(row)]
            yield "| " + " | ".join(cells) + " |"


def _pipeline_rows(pipelines: _FOUND) -> Iterator[str]:
    for name in PIPELINES:
        if name not in pipelines:
            yield f"| {name} | | | | | | | | | not tried yet |"
        else:
            row = pipelines[name]
            ahead = {True: "yes", False: "no", None: ""}
            cells = [
                name,
                row["denoiser"],
                _difference(row),
                ahead[row["repeats"]],
                ahead[row["looks_ahead"]],
                str(row.get("calls_per_step") or ""),
                _count(row, "lagged"),
                _count(row, "foreseen"),
                row.get("commit", ""),
                _note(row),
            ]
            yield "| " + " | ".join(cells) + " |"


def _difference(row: Mapping[str, Any]) -> str:
    difference = row["difference"]
    return "" if difference is None else "0" if difference == 0 else f"{difference:.0e}"


def _count(row: Mapping[str, Any], kind: str) -> str:
    return "" if row.get(kind) is None else f"{row[kind]} of {row[f'could_be_{kind}']}"


def _share(row: Mapping[str, Any], kind: str) -> float:
    """How many calls were lagged, or foreseen, of those that could have been."""
    return (row.get(kind) or 0) / max(1, row.get(f"could_be_{kind}") or 0)


def _note(row: Mapping[str, Any]) -> str:
    if row["failed"] is None:
        notes = [f"{count} exact: {reason}" for reason, count in row.get("exact", {}).items()]
        if row.get("wasted"):
            notes.append(f"{row['wasted']} foreseen in vain")
        if row.get("no_streams"):
            notes.append(f"none foreseen: {escaped(row['no_streams'])}".replace("|", "/"))
        return "; ".join(notes)
    return f"fails to {row['failed']}: {escaped(row['why']).replace('|', '/')}"
