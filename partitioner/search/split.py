"""Split: a placement of a Problem's nodes on components and devices, with its figures: what a search gives back."""

from __future__ import annotations

from dataclasses import dataclass

from partitioner.search.evaluate import Evaluation


@dataclass(frozen=True)
class Split:
    """assignment: component of each node; device_of: device of each component; form: contiguous, folded or general.

    The last component makes the denoiser's output.
    """

    assignment: tuple[int, ...]
    device_of: tuple[int, ...]
    form: str
    evaluation: Evaluation

    def score(self, byte_weight: float) -> float:
        """What is minimised among splits of about the same T, up to a constant; see Figures.score."""
        figures = self.evaluation
        return figures.staleness + byte_weight * (figures.bytes_per_step + figures.repeated_bytes)
