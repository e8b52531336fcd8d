"""Writes measured rows and edge errors into a quality profile, which the planner reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from profiles.quality_profile import FEWER_STEPS, MeasuredDrift, QualityProfile, QualityRow


def by_case(document: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The rows of each case; the first is its sequential output."""
    found: list[list[dict[str, Any]]] = []
    for row in document["rows"]:
        if row["predictor"] == "sequential":
            found.append([])
        found[-1].append(row)
    return found


def calibrate(file: Path, document: dict[str, Any], drift: MeasuredDrift | None) -> None:
    """Add what was measured to a quality profile, in place of what it has of the same cases over no more samples; exact
    rows say nothing."""
    kept = QualityProfile.load(file) if file.exists() else None
    fields = set(QualityRow.model_fields)
    rows = {_key(row): row for row in (kept.rows if kept else ())}
    for whole, *others in by_case(document):
        for row in others:
            if row["predictor"] == "exact" or row["period"] > 1:
                continue
            own = {name: value for name, value in row.items() if name in fields} | {"denoiser": document["denoiser"]}
            own["steps"] = whole["steps"]  # of the output that it is compared with
            made = QualityRow(**own)
            known = rows.get(_key(made))
            if known is None or known.samples <= made.samples:
                rows[_key(made)] = made
    drifts = {known.denoiser: known for known in (kept.drift if kept else ())}
    if drift is not None:
        drifts[drift.denoiser] = drift
    environment = document["environment"]
    QualityProfile(
        schema_version=1,
        date=environment["date"],
        commands=(*(kept.commands if kept else ()), document["command"]),
        versions={name: environment[name] for name in ("python", "torch", "diffusers")},
        rows=tuple(rows[key] for key in sorted(rows)),
        drift=tuple(drifts.values()),
    ).save(file, overwrite=True)


def _key(row: QualityRow) -> tuple[Any, ...]:
    speedup = row.speedup if row.predictor == FEWER_STEPS else 0.0
    return row.denoiser, row.scheduler, row.steps, row.predictor, row.components, row.split, speedup
