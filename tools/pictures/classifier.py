"""Classifier: tells shape, colour, background and place of a drawn picture; its features are compared too.

It is to drawn pictures what CLIP and Inception are to photographs: it measures agreement with the prompt and the
Fréchet distance.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tools.pictures.shapes import CHOICES

FEATURES = 64
FILE = Path(__file__).parents[1] / "trained" / "classifier" / "classifier.safetensors"


class Classifier(nn.Module):
    """A small convolutional network: pixels (count, 3, 32, 32) in [-1, 1] -> logits for each of CHOICES."""

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
        """Features (count, FEATURES) of pixels (count, 3, 32, 32) in [-1, 1]."""
        made: torch.Tensor = self.project(self.convolutions(pixels).flatten(1))
        return made

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        features = nn.functional.silu(self.features(pixels))
        return [head(features) for head in self.heads]

    @torch.no_grad()
    def recognised(self, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Of each picture, whether all four of its labels (count, 4) are recognised."""
        return (torch.stack([logits.argmax(1) for logits in self(pixels)], 1) == labels).all(1)

    def agreement(self, pixels: torch.Tensor, labels: torch.Tensor) -> float:
        """Share of pictures in which all four labels (count, 4) are recognised."""
        return float(self.recognised(pixels, labels).float().mean())

    def save(self, file: Path = FILE) -> None:
        save_file({name: t.half().contiguous() for name, t in self.state_dict().items()}, file)

    @classmethod
    def load(cls, file: Path = FILE) -> Classifier:
        """The shipped classifier, in float32."""
        made = cls()
        made.load_state_dict({name: t.float() for name, t in load_file(file).items()})
        return made.eval()
