"""Classifier: tells shape, colour, background and place of a picture of tools.shapes; its features are compared too.

It takes the role that CLIP and Inception have for real pictures: agreement with the prompt and Fréchet distance.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tools.shapes import CHOICES

FEATURES = 64
FILE = Path(__file__).parent / "trained" / "classifier" / "classifier.safetensors"


class Classifier(nn.Module):
    """pixels (count, 3, 32, 32) in [-1, 1] -> one tensor of logits per entry of CHOICES."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 64)
        self.convolutions = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(4, b), nn.SiLU())
                for a, b in pairwise(widths)
            )
        )
        self.project = nn.Linear(64 * 16, FEATURES)
        self.heads = nn.ModuleList(nn.Linear(FEATURES, count) for count in CHOICES)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(count, FEATURES)."""
        made: torch.Tensor = self.project(self.convolutions(pixels).flatten(1))
        return made

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        features = nn.functional.silu(self.features(pixels))
        return [head(features) for head in self.heads]

    @torch.no_grad()
    def agreement(self, pixels: torch.Tensor, labels: torch.Tensor) -> float:
        """The share of pictures whose four labels (count, 4) are all recognised."""
        right = torch.stack([logits.argmax(1) for logits in self(pixels)], 1) == labels
        return float(right.all(1).float().mean())

    def save(self, file: Path = FILE) -> None:
        save_file({name: t.half().contiguous() for name, t in self.state_dict().items()}, file)

    @classmethod
    def load(cls, file: Path = FILE) -> Classifier:
        """The shipped classifier, in float32."""
        made = cls()
        made.load_state_dict({name: t.float() for name, t in load_file(file).items()})
        return made.eval()


@torch.no_grad()
def frechet(one: torch.Tensor, other: torch.Tensor) -> float:
    """Fréchet distance of two sets of features (count, FEATURES), each taken as Gaussian, in float64.

    Source: Heusel et al., arXiv 1706.08500.
    """
    (mean_a, cov_a), (mean_b, cov_b) = (_gaussian(features.double()) for features in (one, other))
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    shared = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    return float(((mean_a - mean_b) ** 2).sum() + cov_a.trace() + cov_b.trace() - 2 * shared)


@torch.no_grad()
def frechet_noise(one: torch.Tensor, reference: torch.Tensor, other: torch.Tensor, resamples: int = 20) -> float:
    """Standard deviation of frechet(one, other) - frechet(reference, other), by which the two are compared.

    one, reference: features (count, FEATURES) of the same seeds; by bootstrap over these, seeded.
    """
    generator = torch.Generator().manual_seed(0)
    count = len(one)
    drawn = [torch.randint(count, (count,), generator=generator) for _ in range(resamples)]
    differences = torch.tensor([frechet(one[rows], other) - frechet(reference[rows], other) for rows in drawn])
    return float(differences.std())


def _gaussian(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return features.mean(0), torch.cov(features.T)
