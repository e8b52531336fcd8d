"""Draws a procedural data set of captioned pictures, for small denoisers that can be trained on a CPU.

A picture shows one shape of one colour on a background, in one place, with a little jitter of size and place. The
caption names all four, so that a classifier can tell whether a generated picture agrees with its prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

SIZE = 32  # pixels, square
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (0.85, 0.15, 0.15),
    "green": (0.15, 0.70, 0.20),
    "blue": (0.20, 0.35, 0.90),
    "yellow": (0.95, 0.85, 0.15),
    "purple": (0.60, 0.20, 0.75),
    "orange": (0.95, 0.55, 0.10),
}
BACKGROUNDS = {
    "black": (0.05, 0.05, 0.05),
    "white": (0.95, 0.95, 0.95),
    "gray": (0.50, 0.50, 0.50),
    "navy": (0.05, 0.10, 0.35),
    "pink": (0.95, 0.70, 0.80),
    "teal": (0.10, 0.45, 0.45),
}
PLACES = {"middle": (0.0, 0.0), "left": (-0.4, 0.0), "right": (0.4, 0.0), "above": (0.0, -0.4), "below": (0.0, 0.4)}
CHOICES = (len(SHAPES), len(COLOURS), len(BACKGROUNDS), len(PLACES))
WORDS = ("a", "on", *SHAPES, *COLOURS, *BACKGROUNDS, *PLACES)


@dataclass(frozen=True)
class Pictures:
    """Drawn pictures.

    Attributes:
        pixels: (count, 3, SIZE, SIZE) in [-1, 1].
        labels: (count, 4), one index for each of CHOICES: shape, colour, background, place.
    """

    pixels: torch.Tensor
    labels: torch.Tensor

    @property
    def captions(self) -> list[str]:
        return [caption(row) for row in self.labels.tolist()]


def caption(label: list[int]) -> str:
    """The caption of one label.

    >>> caption([0, 0, 3, 1])
    'a red circle on navy left'
    """
    shape, colour, background, place = label
    return f"a {list(COLOURS)[colour]} {SHAPES[shape]} on {list(BACKGROUNDS)[background]} {list(PLACES)[place]}"


def draw_labels(count: int, generator: torch.Generator) -> torch.Tensor:
    """Uniformly random labels (count, 4)."""
    return torch.stack([torch.randint(n, (count,), generator=generator) for n in CHOICES], 1)


def draw(labels: torch.Tensor, generator: torch.Generator) -> Pictures:
    """Pictures of the labels, with jitter from the generator; edges are one pixel soft."""
    count = len(labels)
    places, colours, grounds = (torch.tensor(list(t.values())) for t in (PLACES, COLOURS, BACKGROUNDS))
    jitter = torch.rand(count, 3, generator=generator) * 2 - 1
    centre = places[labels[:, 3]] + 0.08 * jitter[:, :2]
    radius = (0.38 + 0.06 * jitter[:, 2]).view(-1, 1, 1)
    axis = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1
    x = axis.view(1, 1, -1) - centre[:, 0].view(-1, 1, 1)
    y = axis.view(1, -1, 1) - centre[:, 1].view(-1, 1, 1)
    distance = _distances(x, y, radius).gather(1, labels[:, 0].view(-1, 1, 1, 1).expand(-1, 1, SIZE, SIZE))
    inside = torch.sigmoid(-distance * 2 * SIZE)
    pixels = grounds[labels[:, 2]].view(-1, 3, 1, 1) * (1 - inside) + colours[labels[:, 1]].view(-1, 3, 1, 1) * inside
    return Pictures(pixels * 2 - 1, labels)


def _distances(x: torch.Tensor, y: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """(count, shape, SIZE, SIZE): about how far outside each shape a pixel is; negative inside."""
    x, y = x + 0 * y, y + 0 * x
    circle = (x**2 + y**2).sqrt() - radius
    square = torch.maximum(x.abs(), y.abs()) - 0.85 * radius
    slant = 3**0.5 / 2 * x.abs() - 0.5 * y
    triangle = torch.maximum(slant, y) - 0.6 * radius
    arm = 0.35 * radius
    upright = torch.maximum(x.abs() - arm, y.abs() - radius)
    across = torch.maximum(x.abs() - radius, y.abs() - arm)
    return torch.stack([circle, square, triangle, torch.minimum(upright, across)], 1)
