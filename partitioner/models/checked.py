"""checked_names: what came of planning each built-in name, as ``python -m tools.measure models`` wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from profiles.json_files import read_json

CHECKED_FILE = Path(__file__).parent / "checked.json"


@dataclass(frozen=True, slots=True)
class CheckedName:
    """One run of ``partition-model --model NAME --devices N``.

    Attributes:
        devices: How many it was planned for.
        seconds: By the clock, other programs running beside it.
        cpu_seconds: Of all its threads and processes.
        peak_bytes: The most memory of the process, and of the one that traces half a guidance batch beside it.
        trace_seconds: Of them for tracing.
        nodes: Of the plan.
        failed: The error that it ended with; None where it wrote a plan, else the figures are those up to then.
        versions: Of torch and diffusers.
    """

    devices: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    trace_seconds: float | None
    nodes: int | None
    failed: str | None
    versions: str

    def as_json(self) -> dict[str, Any]:
        """As it stands in the file."""
        return asdict(self)


def checked_names() -> Mapping[str, CheckedName]:
    """What is known, by name."""
    entries: Any = read_json(CHECKED_FILE, 1_000_000) if CHECKED_FILE.exists() else {}
    return {name: CheckedName(**entry) for name, entry in entries.items()}
