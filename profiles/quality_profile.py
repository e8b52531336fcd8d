"""QualityProfile: measured PSNR of distributed against sequential output, by sampler, steps and components."""

from __future__ import annotations

import os
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
        exact_share: Of the calls in look-ahead those that were exact, warm-up included; None: not known.
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
    exact_share: Annotated[float, Field(ge=0, le=1)] | None = None


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
