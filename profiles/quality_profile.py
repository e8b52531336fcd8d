"""QualityProfile: measured PSNR of distributed against sequential output, by sampler, steps and components."""

from __future__ import annotations

import math
import os
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Self

from pydantic import FailFast, Field, model_validator

from profiles.json_files import JsonFileError, canonical_bytes, read_json, write_atomic
from profiles.records import Record, Text

SCHEMA_VERSION = 2  # 1 said nothing of guidance
MAX_BYTES = 4_000_000
SHIPPED = Path(__file__).parent / "quality.json"
FEWER_STEPS = "fewer_steps"

Finite = Annotated[float, Field(allow_inf_nan=False)]
Edge = Annotated[tuple[Text, Text], Field(strict=False)]
Sketch = Annotated[tuple[Finite, ...], Field(strict=False)]


class QualityRow(Record):
    """PSNR in dB against the sequential output of a run, median over samples.

    Attributes:
        denoiser: Name of the denoiser; scheduler: the sampler, a class of diffusers.
        scheduler_config: Its settings, as ``partitioner.models.samplers.settings_text`` writes them; "": not known.
        guidance_scale: Of the pipeline's calls; 1 where these had no second half, because it did no guidance or its
            denoiser takes the scale as an input.
        steps: Steps of the sequential run; warmup: exact steps at the start of the distributed one.
        components: Components of a branch; split: the form of the split, as the solver calls it.
        predictor: "lookahead", or what async mode predicted boundary tensors with; "fewer_steps" for a sequential run
            of fewer steps, ``steps / speedup`` of them.
        samples: How many outputs were compared; psnr_db: their median PSNR.
        speedup: Speed-up over the sequential run.
    """

    denoiser: Text
    scheduler: Text
    steps: Annotated[int, Field(ge=1)]
    components: Annotated[int, Field(ge=1)]
    split: Text
    predictor: Text
    warmup: Annotated[int, Field(ge=1)]
    samples: Annotated[int, Field(ge=1)]
    psnr_db: Finite
    speedup: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    guidance_scale: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    scheduler_config: Annotated[str, Field(max_length=65536)] = ""


class MeasuredDrift(Record):
    """Error in a denoiser's output where a value lags by one step, edge by edge; see partitioner.staleness.edge_errors.

    Attributes:
        denoiser: Name of the denoiser.
        edges: Keys of the node that makes a value and of a node that reads it.
        sketches: For each edge a random projection of the error, all of one length.
    """

    denoiser: Text
    edges: Annotated[tuple[Edge, ...], Field(strict=False), FailFast()]
    sketches: Annotated[tuple[Sketch, ...], Field(strict=False), FailFast()]

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if len(self.edges) != len(self.sketches) or len({len(row) for row in self.sketches}) != 1:
            raise ValueError("expected one sketch for every edge, all of one length")
        return self


class QualityProfile(Record):
    """What tools.quality has measured.

    Attributes:
        date: UTC, ISO 8601.
        commands: What measured it; versions: of torch, diffusers and others then.
        rows: Measured PSNR, a row per denoiser, sampler, number of steps and split.
        drift: Errors of values that lag, measured on denoisers of users.
    """

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)]
    date: Text
    commands: Annotated[tuple[Text, ...], Field(strict=False)]
    versions: dict[Text, Text]
    rows: Annotated[tuple[QualityRow, ...], Field(strict=False), FailFast()]
    drift: Annotated[tuple[MeasuredDrift, ...], Field(strict=False)] = ()

    @classmethod
    def load(cls, path: str | os.PathLike[str] = SHIPPED) -> QualityProfile:
        """Read a profile from a file, by default the shipped one.

        Raises:
            JsonFileError: And no other error, for a file that is not a quality profile of this version.
        """
        document = read_json(path, MAX_BYTES)
        if isinstance(document, dict) and document.get("schema_version") != SCHEMA_VERSION:
            version = str(document.get("schema_version"))[:40]
            raise JsonFileError(
                f"{path} is no quality profile of schema version {SCHEMA_VERSION}, whose rows say which guidance scale "
                f"they were measured at, but of version {version}: measure again, with python -m tools.quality "
                "--pipeline FOLDER --calibrate FILE"
            )
        return cls.from_document(document, path, "quality profile")

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write it to a file; the same profile gives the same bytes.

        Raises:
            JsonFileError: The file exists and may not be overwritten, or it cannot be written.
        """
        write_atomic(path, canonical_bytes(self.model_dump(mode="json")), overwrite)

    def expected(self, components: int, predictor: str, steps: int, scheduler: str | None) -> float | None:
        """The PSNR in dB to expect: the least over denoisers and splits in the nearest measured case.

        Args:
            components: Components of a branch; only rows with as many count.
            predictor: As in QualityRow; only rows with the same count.
            steps: Steps of the run. Rows with the nearest number count, by ratio.
            scheduler: The sampler's class; None for the least over all.

        Returns:
            None where nothing was measured within half and twice the steps.

        >>> QualityProfile.load().expected(components=999, predictor="hold", steps=50, scheduler=None) is None
        True
        """
        own = [
            row
            for row in self.rows
            if row.components == components and row.predictor == predictor and scheduler in (None, row.scheduler)
        ]
        return min((row.psnr_db for row in _nearest(own, steps)), default=None)

    def fewer_steps(self, speedup: float, steps: int, scheduler: str | None) -> float | None:
        """The PSNR in dB of a sequential run of ``steps / speedup`` steps: the most over denoisers.

        Args:
            speedup: By how much fewer steps shorten the run; between measured ones the PSNR is interpolated.
            steps: Steps of the run that it is compared with.
            scheduler: The sampler's class; None for the most over all.

        Returns:
            None where nothing was measured near.
        """
        found = []
        own = [row for row in self.rows if row.predictor == FEWER_STEPS and scheduler in (None, row.scheduler)]
        for denoiser, name in sorted({(row.denoiser, row.scheduler) for row in own}):
            rows = _nearest([row for row in own if (row.denoiser, row.scheduler) == (denoiser, name)], steps)
            value = _between(sorted((row.speedup, row.psnr_db) for row in rows), speedup)
            if value is not None:
                found.append(value)
        return max(found, default=None)


def _nearest(rows: list[QualityRow], steps: int) -> list[QualityRow]:
    """The rows with the nearest number of steps, by ratio; none where that is beyond a factor of two."""
    distance = min((abs(math.log2(row.steps / steps)) for row in rows), default=math.inf)
    return [row for row in rows if abs(math.log2(row.steps / steps)) == distance <= 1.0]


def _between(points: list[tuple[float, float]], at: float) -> float | None:
    """The value at a place between points (place, value) in ascending order, interpolated linearly.

    Up to 5 % beyond the first or last point it is the value there, for a number of steps is whole; further away None.
    """
    for (low, first), (high, second) in pairwise(points):
        if low <= at <= high:
            return first if high == low else first + (second - first) * (at - low) / (high - low)
    ends = [points[0], points[-1]] if points else []
    return next((value for place, value in ends if abs(at / place - 1) <= 0.05), None)
