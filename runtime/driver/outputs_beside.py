"""OutputsBeside: what a generation's streams gave at one noise level, which guidance in calls of its own mixes."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch

KEPT = 2  # calls of a stream: another one's next call may come before its own or after it


@dataclass(frozen=True)
class Shown:
    """An output, and the latent that it was made of: (rows, ...) in float32. level: of the call's noise."""

    level: float
    output: torch.Tensor
    latent: torch.Tensor


@dataclass
class OutputsBeside:
    """The last outputs of a generation's streams."""

    _shown: WeakKeyDictionary[object, deque[Shown]] = field(default_factory=WeakKeyDictionary)

    def show(self, stream: object, shown: Shown) -> None:
        """Take an output of a stream; in call order."""
        self._shown.setdefault(stream, deque(maxlen=KEPT)).append(shown)

    def of_others(self, stream: object, shown: Shown) -> list[Shown]:
        """What others gave at the level of an output of this stream, of its shape; by their first calls."""
        return [
            other
            for owner, outputs in self._shown.items()
            for other in outputs
            if owner is not stream and other.level == shown.level and other.output.shape == shown.output.shape
        ]


def outputs_by_latent() -> defaultdict[str, OutputsBeside]:
    """Of each latent input of a denoiser."""
    return defaultdict(OutputsBeside)
