"""picture_grid: many pictures as one."""

from __future__ import annotations

import torch
from PIL import Image


def picture_grid(pixels: torch.Tensor, columns: int = 8, enlarge: int = 3) -> Image.Image:
    """Many pictures as one, row by row.

    Args:
        pixels: (count, 3, height, width) in [-1, 1].
        columns: pictures in a row.
        enlarge: factor by which the result is enlarged.
    """
    count, _, height, width = pixels.shape
    rows = count // columns
    grid = pixels[: rows * columns].view(rows, columns, 3, height, width).permute(0, 3, 1, 4, 2)
    flat = grid.reshape(rows * height, columns * width, 3)
    picture = Image.fromarray(((flat + 1) * 127.5).round().clamp(0, 255).byte().numpy())
    return picture.resize((picture.width * enlarge, picture.height * enlarge), Image.Resampling.NEAREST)
