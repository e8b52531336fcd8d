"""calibrate: adds measured rows and edge errors to a quality profile, which the planner reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from partitioner.errors import UsageError
from partitioner.models.samplers import denoiser_calls
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
    fields = set(QualityRow.model_fields)
    rows = []
    for whole, *others in by_case(document):
        for row in others:
            if row["predictor"] == "exact" or row["period"] > 1:
                continue
            own = {name: value for name, value in row.items() if name in fields} | {"denoiser": document["denoiser"]}
            own["steps"] = whole["steps"]  # of the output that it is compared with
            if row["guard"] is not None:
                calls = denoiser_calls(row["scheduler"], row["steps"])
                own["exact_share"] = min(1.0, row["exact_calls"] / calls)
            rows.append(QualityRow(**own))
    environment = document["environment"]
    versions = {name: environment[name] for name in ("python", "torch", "diffusers")}
    add_rows(file, rows, [document["command"]], environment["date"], versions, drift)


def add_rows(
    file: Path,
    rows: Iterable[QualityRow],
    commands: Sequence[str],
    date: str,
    versions: Mapping[str, str],
    drift: MeasuredDrift | None = None,
    *,
    replace: bool = False,
) -> None:
    """Add rows to the quality profile in a file, as ``calibrate`` does.

    Args:
        file: the profile.
        rows: that were measured.
        commands: what measured them; date: when; versions: of python, torch and diffusers then.
        drift: as for ``calibrate``.
        replace: also rows of the same case that were measured over more samples.
    """
    kept = QualityProfile.load(file) if file.exists() else None
    found = {_key(row): row for row in (kept.rows if kept else ())}
    for made in rows:
        known = found.get(_key(made))
        if known is None or replace or known.samples <= made.samples:
            found[_key(made)] = made
    drifts = {known.denoiser: known for known in (kept.drift if kept else ())}
    if drift is not None:
        drifts[drift.denoiser] = drift
    QualityProfile(
        schema_version=SCHEMA_VERSION,
        date=date,
        commands=(*(kept.commands if kept else ()), *commands),
        versions=dict(versions),
        rows=tuple(found[key] for key in sorted(found)),
        drift=tuple(drifts.values()),
    ).save(file, overwrite=True)


def _key(row: QualityRow) -> tuple[Any, ...]:
    speedup = row.speedup if row.predictor == FEWER_STEPS else 0.0
    sampling = row.scheduler, row.scheduler_config, row.steps, row.guidance_scale
    return row.denoiser, *sampling, row.predictor, row.components, row.split, speedup
