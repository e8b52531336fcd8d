"""OutputsBeside: what a generation's streams gave at one noise level, which guidance in calls of its own mixes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import torch

KEPT = 2  # levels: a stream's next call may come before another one's at the present level or after it


@dataclass(frozen=True)
class Shown:
    """An output, and the latent that it was made of: (rows, ...) in float32. level: of the call's noise."""

    level: float
    output: torch.Tensor
    latent: torch.Tensor


@dataclass
class OutputsBeside:
    """The last outputs of a generation's streams, also of those that have ended meanwhile."""

    _shown: dict[float, list[tuple[object, Shown]]] = field(default_factory=dict)  # by level; the last used is last

    def show(self, stream: object, shown: Shown) -> None:
        """Take an output of a stream; in call order. stream: what stands for it."""
        self._shown[shown.level] = [*self._shown.pop(shown.level, []), (stream, shown)]
        while len(self._shown) > KEPT:
            del self._shown[next(iter(self._shown))]

    def of_others(self, stream: object, shown: Shown) -> list[Shown]:
        """What others gave at the level of an output of this stream, of its shape; in call order."""
        return [
            other
            for owner, other in self._shown.get(shown.level, [])
            if owner is not stream and other.output.shape == shown.output.shape
        ]


def outputs_by_latent() -> defaultdict[str, OutputsBeside]:
    """Of each latent input of a denoiser."""
    return defaultdict(OutputsBeside)
