"""CostProfile: measured times by operator signature. The records below are the specification of the file."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import FailFast, Field

from profiles.json_files import JsonFileError, canonical_bytes, read_json, write_atomic
from profiles.records import Record, Text

SCHEMA_VERSION = 1
MAX_BYTES = 4_000_000
MAX_VALUES = 40_000  # 10,000 signatures; a large denoiser has some 500

Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class SignatureCost(Record):
    """Time of one operator call in ms.

    Attributes:
        median_ms: Median over at least 5 calls.
        iqr_ms: Inter-quartile range.
        launch_ms: On a GPU the host's time to enqueue the call. On a CPU 0, but in mode "compiled" the time of calling
            any compiled function, which the median leaves out.
    """

    median_ms: Milliseconds
    iqr_ms: Milliseconds
    launch_ms: Milliseconds


class WholeCheck(Record):
    """The sum of all node times of a denoiser next to the time of the whole; times in ms.

    Attributes:
        model: Name of the model; fingerprint: of its graph.
        summed_ms: Sum of the node times.
        whole_ms: Median of whole calls of the traced graph, run as components run it; whole_iqr_ms: their
            inter-quartile range.
        module_ms: Median of whole eager calls of the untraced module, which also runs Python of its own; None where
            there were no weights to run it with.
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
    """Measured times of operator calls on one device, by signature (partitioner.costs.signature).

    Attributes:
        device: "cpu" or "cuda"; device_name: what the system calls it.
        clock_mhz: Clock of the core or the GPU when it was measured; None where unknown.
        versions: Versions of torch and what it runs on.
        dtype: The dtype that most parameters have.
        mode: "eager" (one call after the other, launches included), "cuda_graph" (kernels alone, replayed) or
            "compiled" (each operator compiled by itself, without the time of calling it).
        date: UTC, ISO 8601.
        command: What recorded it.
        signatures: The times.
        checks: Sums of node times next to whole denoisers.
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
        """Read a profile from a file.

        Raises:
            JsonFileError: And no other error, for a file that is not a cost profile of this version.
        """
        document = read_json(path, MAX_BYTES, MAX_VALUES)
        if isinstance(document, dict) and document.get("schema_version") != SCHEMA_VERSION:
            version = str(document.get("schema_version"))[:40]
            raise JsonFileError(f"{path} has schema version {version}; this release reads version {SCHEMA_VERSION}")
        return cls.from_document(document, path, "cost profile")

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write it to a file; the same profile gives the same bytes.

        Raises:
            JsonFileError: The file exists and may not be overwritten, or it cannot be written.
        """
        write_atomic(path, canonical_bytes(self.model_dump(mode="json")), overwrite)
