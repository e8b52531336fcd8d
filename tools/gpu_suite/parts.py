"""The parts of the suite: what each runs, in order of worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DENOISERS = ("sd15", "sd21", "sdxl", "svd", "animatediff", "sd3", "flux")
CONCURRENT = ("sd15", "sdxl", "sd3")  # of these also what runs at once; the engine with the first of them


@dataclass(frozen=True)
class SuitePart:
    """A part of the suite.

    Attributes:
        name: of its document.
        command: arguments of ``python -m``.
        limit_s: time after which it is killed; about three times what it should take.
    """

    name: str
    command: tuple[str, ...]
    limit_s: float


def plan_parts(names: Sequence[str], device: str, folder: Path) -> list[SuitePart]:
    """All parts, in order; without those that need a GPU where the device is a CPU."""
    on_gpu = device != "cpu"

    def part(name: str, kind: str, of: str, limit_s: float) -> SuitePart:
        command = ("tools.gpu_suite.run_part", kind, "--denoiser", of, "--device", device, "--output", str(folder))
        return SuitePart(name, command, limit_s)

    def for_each(kind: str, of: Sequence[str], limit_s: float) -> list[SuitePart]:
        return [part(f"{kind}-{name}", kind, name, limit_s) for name in of]

    every = ",".join(names)
    concurrent = [name for name in names if name in CONCURRENT] or list(names[:1])
    return [
        *([part("tests", "tests", every, 420)] if on_gpu else []),
        part("traces", "traces", every, 300),
        *for_each("profile", names, 180),
        *for_each("components", names, 180),
        *(for_each("concurrency", concurrent, 120) if on_gpu else []),
        *for_each("engine", concurrent[:1], 240),
        *for_each("compiled", names, 300),
    ]
