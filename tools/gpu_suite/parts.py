"""The parts of the suite: what each runs, in order of worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DENOISERS = ("sdxl", "sd15", "flux", "svd", "wan21-1.3b")  # the first is measured in every way
TINY = {"sdxl": "sdxl-tiny"}  # the same operators on next to no numbers: what is left is the host's time
SMALL = "small"  # for trying the suite out on a CPU
RANKS = (4, 2)
TRANSPORTS = ("threads", "processes", "emulation")  # the last: the same work one after the other
SHARED = ("mps", "shares")  # processes and threads, each on a share of the GPU of its own
PIPELINES = ("trained", "sdxl")


@dataclass(frozen=True)
class SuitePart:
    """A part of the suite.

    Attributes:
        name: of its document.
        command: arguments of ``python -m``.
        limit_s: time after which it is killed, including what it waits for the device.
        least_s: it is not begun where less time than this is left.
        after: names of the parts that it begins after.
    """

    name: str
    command: tuple[str, ...]
    limit_s: float
    least_s: float = 0.0
    after: tuple[str, ...] = ()


def plan_parts(names: Sequence[str], device: str, folder: Path) -> list[SuitePart]:
    """All parts, in order; without those that need a GPU where the device is a CPU."""
    on_gpu = device != "cpu"
    first, rest = names[0], list(names[1:])

    def part(
        kind: str, *more: str, of: str = "", limit_s: float = 200, least_s: float = 20, after: str = ""
    ) -> SuitePart:
        name = "-".join(word for word in (kind, of, *more) if word)
        command = ("tools.gpu_suite.run_part", kind, *more, "--name", name, "--denoiser", of or first)
        where = ("--device", device, "--output", str(folder))
        return SuitePart(name, (*command, *where), limit_s, least_s, tuple(after.split()))

    def engine(of: str, transport: str, ranks: int) -> SuitePart:
        return part("engine", transport, str(ranks), of=of, after=f"profile-{first}")

    def only_on_gpu(*parts: SuitePart) -> list[SuitePart]:
        return list(parts) if on_gpu else []

    profiled = f"profile-{first}"
    return [
        part("environment", limit_s=60, least_s=5),
        *only_on_gpu(part("tests", limit_s=240, least_s=40)),
        part("profile", of=first),
        part("components", of=first, after=profiled),
        *only_on_gpu(engine(first, "mps", RANKS[0])),
        engine(first, "threads", RANKS[0]),
        engine(first, "processes", RANKS[0]),
        *only_on_gpu(engine(first, "shares", RANKS[0])),
        *[engine(TINY[first], transport, RANKS[0]) for transport in TRANSPORTS[:2] if first in TINY],
        *[part("pipeline", name, limit_s=150) for name in PIPELINES],
        *only_on_gpu(part("concurrency", of=first, after=profiled)),
        *[part("profile", of=name, limit_s=300) for name in rest],
        engine(first, "emulation", RANKS[0]),
        *only_on_gpu(*[engine(first, transport, ranks) for ranks in RANKS[1:] for transport in SHARED]),
        *[engine(first, transport, ranks) for ranks in RANKS[1:] for transport in TRANSPORTS[:2]],
        part("compiled", of=first, limit_s=400, least_s=60),
        *[part("half", of=name, after=f"profile-{name}") for name in names],
        *[part("components", of=name, after=f"profile-{name}") for name in rest],
        *only_on_gpu(*[part("eager", of=name, after=f"profile-{name}") for name in names]),
    ]
