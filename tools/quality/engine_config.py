"""EngineConfig: one way to run the engine, as an entry of ``--ways`` writes it."""

from __future__ import annotations

from dataclasses import dataclass

from partitioner.errors import UsageError


@dataclass(frozen=True)
class EngineConfig:
    """How the engine runs a pipeline. What is None the planner chooses.

    Attributes:
        devices: number of devices.
        branches: groups of devices that compute parts of a step apart, such as the halves of a guidance batch.
        split: "chain" for the split that look-ahead needs, every component one run of nodes; "free" for the best
            split for async mode, which may be a fold.
        predictor: "lookahead" for look-ahead; else async mode, with this predictor for lagged boundary tensors.
        period: every how many steps a component recomputes.
    """

    devices: int
    branches: int | None = None
    split: str | None = None
    predictor: str | None = None
    period: int = 1


def parse_config(text: str) -> EngineConfig:
    """Read an entry of ``--ways``, such as "4:1:chain:lookahead".

    Raises:
        UsageError: it is not of the form DEVICES[:BRANCHES[:chain|free[:PREDICTOR[:PERIOD]]]].

    >>> parse_config("4:1:free:hold")
    EngineConfig(devices=4, branches=1, split='free', predictor='hold', period=1)
    """
    parts = text.strip().split(":")
    allowed = (None, None, ("chain", "free"), ("lookahead", "hold", "linear", "adaptive"), None)
    fits = len(parts) <= len(allowed) and all(a is None or p in a for p, a in zip(parts, allowed, strict=False))
    if not fits or any(not parts[i].isdigit() or int(parts[i]) < 1 for i in (0, 1, 4) if i < len(parts)):
        raise UsageError(f"--ways {text!r}: expected DEVICES[:BRANCHES[:chain|free[:PREDICTOR[:PERIOD]]]]")
    devices, branches, split, predictor, period = (*parts, *[""] * (5 - len(parts)))
    return EngineConfig(
        devices=int(devices),
        branches=int(branches) if branches else None,
        split=split or None,
        predictor=predictor or None,
        period=int(period or 1),
    )
