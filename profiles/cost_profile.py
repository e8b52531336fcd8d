"""CostProfile: measured times per operator signature, as a file whose specification are the records below."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import FailFast, Field

from profiles.json_files import JsonFileError, canonical_bytes, read_json, write_atomic
from profiles.records import Record

SCHEMA_VERSION = 1
MAX_BYTES = 4_000_000
MAX_VALUES = 40_000  # 10,000 signatures; a large denoiser has some 500

Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=4096)]


class SignatureCost(Record):
    """Time of one call: median and inter-quartile range in ms.

    launch_ms: what the host needs to enqueue the call on a GPU. On a CPU calls end when done: 0, and in mode "compiled"
    what calling a compiled function takes, which the median leaves out.
    """

    median_ms: Milliseconds
    iqr_ms: Milliseconds
    launch_ms: Milliseconds


class WholeCheck(Record):
    """The sum of all node times of a denoiser beside its measured whole; times in ms.

    whole_ms: median of whole calls of the traced graph, as components run it. module_ms: median of whole eager
    calls of the untraced module, which runs Python of its own besides; None where there were no weights to run.
    """

    model: Text
    fingerprint: Text
    summed_ms: Milliseconds
    whole_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    whole_iqr_ms: Milliseconds
    module_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None

    @property
    def error(self) -> float:
        """How far the sum lies above (+) or below (-) the whole, as a share of the whole."""
        return self.summed_ms / self.whole_ms - 1


class CostProfile(Record):
    """Real measurements of operator calls on one device; loaded by signature (partitioner.costs.signature.signature).

    device: "cpu" or "cuda"; device_name: what the system calls it. dtype: the dtype that most parameters have.
    mode: "eager" (one call after the other, launches included), "cuda_graph" (kernels alone, replayed) or "compiled"
    (each operator compiled by itself, without what calling it takes).
    clock_mhz: of the core or the GPU when measured, None where unknown. versions: of torch and what it runs on.
    date: UTC, ISO 8601. command: what recorded it.
    """

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)]
    device: Literal["cpu", "cuda"]
    device_name: Text
    clock_mhz: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
    versions: dict[Text, Text]
    dtype: Text
    mode: Literal["eager", "cuda_graph", "compiled"]
    date: Text
    command: Text
    signatures: dict[Text, SignatureCost]
    checks: Annotated[tuple[WholeCheck, ...], Field(strict=False), FailFast()] = ()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CostProfile:
        """Read a profile; JsonFileError, and nothing else, in one sentence for a file that is none."""
        document = read_json(path, MAX_BYTES, MAX_VALUES)
        if isinstance(document, dict) and document.get("schema_version") != SCHEMA_VERSION:
            version = str(document.get("schema_version"))[:40]
            raise JsonFileError(f"{path} has schema version {version}; this release reads version {SCHEMA_VERSION}")
        return cls.from_document(document, path, "cost profile")

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write it: the same profile gives the same bytes; JsonFileError if the file exists or cannot be written."""
        write_atomic(path, canonical_bytes(self.model_dump(mode="json")), overwrite)
