"""QualityProfile: measured likeness of distributed to sequential output, by sampler, steps and components."""

from __future__ import annotations

import math
import os
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Self

from pydantic import FailFast, Field, model_validator

from profiles.json_files import canonical_bytes, read_json, write_atomic
from profiles.records import Record

SCHEMA_VERSION = 1
MAX_BYTES = 4_000_000
SHIPPED = Path(__file__).parent / "quality.json"
FEWER_STEPS = "fewer_steps"

Text = Annotated[str, Field(max_length=4096)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Edge = Annotated[tuple[Text, Text], Field(strict=False)]
Sketch = Annotated[tuple[Finite, ...], Field(strict=False)]


class QualityRow(Record):
    """PSNR in dB against the sequential output of ``steps`` steps, median over ``samples``.

    scheduler: a class of diffusers. components: of a branch. split: its form, as the solver names it. predictor:
    "lookahead", or what async mode read with; of "fewer_steps" ``speedup`` says how many: steps / speedup.
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


class MeasuredDrift(Record):
    """What one-step lag costs the output of a denoiser, edge by edge; see partitioner.staleness.edge_errors.

    edges: stable keys of a value's node and of a node that reads it. sketches: one row per edge.
    """

    denoiser: Text
    edges: Annotated[tuple[Edge, ...], Field(strict=False), FailFast()]
    sketches: Annotated[tuple[Sketch, ...], Field(strict=False), FailFast()]

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if len(self.edges) != len(self.sketches) or len({len(row) for row in self.sketches}) != 1:
            raise ValueError("expected a row of sketches for every edge, all of one length")
        return self


class QualityProfile(Record):
    """Real measurements by tools.quality. commands: what measured them. drift: of users' denoisers."""

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)]
    date: Text
    commands: Annotated[tuple[Text, ...], Field(strict=False)]
    versions: dict[Text, Text]
    rows: Annotated[tuple[QualityRow, ...], Field(strict=False), FailFast()]
    drift: Annotated[tuple[MeasuredDrift, ...], Field(strict=False)] = ()

    @classmethod
    def load(cls, path: str | os.PathLike[str] = SHIPPED) -> QualityProfile:
        """Read a profile; JsonFileError, and nothing else, in one sentence for a file that is none."""
        document = read_json(path, MAX_BYTES)
        return cls.from_document(document, path, "quality profile")

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write it: the same profile gives the same bytes; JsonFileError if the file exists or cannot be written."""
        write_atomic(path, canonical_bytes(self.model_dump(mode="json")), overwrite)

    def expected(self, components: int, predictor: str, steps: int, scheduler: str | None) -> float | None:
        """The dB to expect: the least over denoisers and splits, in the nearest measured case; None if none is near.

        scheduler: None for the least over all. Near: at most half or twice the steps, and as many components.
        """
        own = [
            row
            for row in self.rows
            if row.components == components and row.predictor == predictor and scheduler in (None, row.scheduler)
        ]
        return min((row.psnr_db for row in _nearest(own, steps)), default=None)

    def fewer_steps(self, speedup: float, steps: int, scheduler: str | None) -> float | None:
        """The dB of fewer sequential steps at a speed-up: the most over denoisers, between the measured speed-ups."""
        found = []
        own = [row for row in self.rows if row.predictor == FEWER_STEPS and scheduler in (None, row.scheduler)]
        for denoiser, name in sorted({(row.denoiser, row.scheduler) for row in own}):
            rows = _nearest([row for row in own if (row.denoiser, row.scheduler) == (denoiser, name)], steps)
            value = _between(sorted((row.speedup, row.psnr_db) for row in rows), speedup)
            if value is not None:
                found.append(value)
        return max(found, default=None)


def _nearest(rows: list[QualityRow], steps: int) -> list[QualityRow]:
    """Those with the nearest number of steps, by ratio; none where that is beyond a factor of two."""
    distance = min((abs(math.log2(row.steps / steps)) for row in rows), default=math.inf)
    return [row for row in rows if abs(math.log2(row.steps / steps)) == distance <= 1.0]


def _between(points: list[tuple[float, float]], at: float) -> float | None:
    """Linear between points (ascending), as the nearest end up to 5 % beyond them, since steps are whole; else None."""
    for (low, first), (high, second) in pairwise(points):
        if low <= at <= high:
            return first if high == low else first + (second - first) * (at - low) / (high - low)
    ends = [points[0], points[-1]] if points else []
    return next((value for place, value in ends if abs(at / place - 1) <= 0.05), None)
