"""How alike two pictures are: PSNR and SSIM."""

from __future__ import annotations

import torch
from torch.nn.functional import conv2d

WINDOW = 11  # pixels
SPREAD = 1.5  # deviation of the window's Gaussian, in pixels


def psnr(pixels: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each picture, in dB, at most 100.

    Args:
        pixels, reference: (count, 3, height, width) in [0, 1].
    """
    error = (pixels.double() - reference.double()).square().flatten(1).mean(1)
    return -10 * error.clamp_min(1e-10).log10()


def ssim(pixels: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each picture, in [-1, 1].

    Source: Wang et al., 2004, with a Gaussian window of 11 pixels, or as many as a smaller picture has, at positions
    where all of the window is inside.

    Args:
        pixels, reference: (count, 3, height, width) in [0, 1].
    """
    one, other = pixels.double(), reference.double()
    size = min(WINDOW, *one.shape[-2:])
    axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    line = torch.exp(-(axis**2) / (2 * SPREAD**2))
    window = torch.outer(line, line) / line.sum() ** 2
    channels = one.shape[1]
    kernel = window.expand(channels, 1, size, size)

    def local(values: torch.Tensor) -> torch.Tensor:
        return conv2d(values, kernel, groups=channels)

    mean_a, mean_b = local(one), local(other)
    spread_a, spread_b = local(one**2) - mean_a**2, local(other**2) - mean_b**2
    shared = local(one * other) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    quality = (2 * mean_a * mean_b + c1) * (2 * shared + c2)
    quality = quality / ((mean_a**2 + mean_b**2 + c1) * (spread_a + spread_b + c2))
    return quality.flatten(1).mean(1)
