"""calibrate: adds measured rows and edge errors to a quality profile, which the planner reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from partitioner.errors import UsageError
from profiles.quality_profile import FEWER_STEPS, SCHEMA_VERSION, MeasuredDrift, QualityProfile, QualityRow
from tools.quality.result_row import by_case


def calibrate(file: Path, document: dict[str, Any], drift: MeasuredDrift | None) -> None:
    """Add the rows of a document to the quality profile in a file, which is made if it is not there.

    A row replaces one of the same case that was measured over as many samples or fewer. Rows of plans with one
    component are left out, since those are exact, and so are rows of multi-rate plans.

    Args:
        file: the profile.
        document: as the command prints it with ``--json``.
        drift: measured edge errors, which replace those of the same denoiser; None adds none.

    Raises:
        UsageError: the guidance scale is not known, so that nobody would know what the rows hold for.
    """
    if any(row["guidance_scale"] is None for row in document["rows"]):
        raise UsageError(
            f"--calibrate: the call of {document['denoiser']}'s pipeline does not say its guidance scale; give "
            "--guidance-scale"
        )
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
        schema_version=SCHEMA_VERSION,
        date=environment["date"],
        commands=(*(kept.commands if kept else ()), document["command"]),
        versions={name: environment[name] for name in ("python", "torch", "diffusers")},
        rows=tuple(rows[key] for key in sorted(rows)),
        drift=tuple(drifts.values()),
    ).save(file, overwrite=True)


def _key(row: QualityRow) -> tuple[Any, ...]:
    speedup = row.speedup if row.predictor == FEWER_STEPS else 0.0
    sampling = row.scheduler, row.scheduler_config, row.steps, row.guidance_scale
    return row.denoiser, *sampling, row.predictor, row.components, row.split, speedup
