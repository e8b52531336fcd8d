"""Way: how the engine runs, as ``--ways`` writes it."""

from __future__ import annotations

from dataclasses import dataclass

from partitioner.errors import UsageError


@dataclass(frozen=True)
class Way:
    """One way to run. predictor: what async mode reads with, or "lookahead"; split: "chain", or "free": as the solver
    finds it best for async mode, folded or not. None for both: as the planner chooses."""

    devices: int
    branches: int | None = None
    split: str | None = None
    predictor: str | None = None
    period: int = 1


def parse_way(text: str) -> Way:
    """A Way as the command line writes it."""
    parts = text.strip().split(":")
    allowed = (None, ("1", "2"), ("chain", "free"), ("lookahead", "hold", "linear", "adaptive"), None)
    fits = len(parts) <= len(allowed) and all(a is None or p in a for p, a in zip(parts, allowed, strict=False))
    if not fits or any(not parts[i].isdigit() or int(parts[i]) < 1 for i in (0, 4) if i < len(parts)):
        raise UsageError(f"--ways {text!r}: expected DEVICES[:BRANCHES[:chain|free[:PREDICTOR[:PERIOD]]]]")
    devices, branches, split, predictor, period = (*parts, *[""] * (5 - len(parts)))
    return Way(int(devices), int(branches) if branches else None, split or None, predictor or None, int(period or 1))
