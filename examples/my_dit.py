"""A diffusion transformer and a sampling loop that know nothing of this project: README's "Bring your own"."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

SIDE, PATCH, CHANNELS = 32, 2, 4  # of the latent, and of a token
WIDTH, HEADS, DEPTH, WORDS = 256, 4, 12, 16


def embedded(t: torch.Tensor, width: int) -> torch.Tensor:
    """Sines and cosines of a timestep, [rows, width]."""
    frequencies = torch.exp(-math.log(10_000.0) * torch.arange(width // 2) / (width // 2))
    angles = t[:, None] * frequencies.to(t)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Attention(nn.Module):
    """Attention of tokens to themselves, or to a text."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.keys_values = nn.Linear(WIDTH, 2 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        keys, values = self.keys_values(read).chunk(2, dim=-1)
        heads = [part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.query(x), keys, values)]
        return self.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention to the picture and to the text, then an MLP; the timestep scales, shifts and gates each."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.modulation = nn.Linear(WIDTH, 6 * WIDTH)
        self.to_itself = Attention()
        self.to_text = Attention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor, time: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(time)[:, None].chunk(6, dim=-1)
        normed = self.norm(x) * (1 + scale_a) + shift_a
        x = x + gate_a * self.to_itself(normed, normed)
        x = x + self.to_text(self.norm(x), text)
        return x + gate_m * self.mlp(self.norm(x) * (1 + scale_m) + shift_m)


class DiT(nn.Module):
    """x: [rows, channels, side, side] the noisy latent; t: [rows]; text: [rows, words, width]. Returns the velocity."""

    def __init__(self) -> None:
        super().__init__()
        tokens = (SIDE // PATCH) ** 2
        self.patches = nn.Conv2d(CHANNELS, WIDTH, PATCH, stride=PATCH)
        self.places = nn.Parameter(0.02 * torch.randn(1, tokens, WIDTH))
        self.time = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.out = nn.Linear(WIDTH, CHANNELS * PATCH**2)

    def forward(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        time = F.silu(self.time(embedded(1000 * t, WIDTH)))
        for block in self.blocks:
            tokens = block(tokens, time, text)
        side = SIDE // PATCH
        pixels = self.out(self.norm(tokens)).unflatten(1, (side, side)).unflatten(-1, (CHANNELS, PATCH, PATCH))
        return pixels.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def make() -> DiT:
    """The denoiser, with random weights that are always the same."""
    torch.manual_seed(0)
    return DiT().eval()


@torch.no_grad()
def sample(denoise: Callable[..., torch.Tensor], steps: int, seed: int = 0) -> torch.Tensor:
    """Euler's steps from noise to a picture's latent, along the velocity that ``denoise(x, t, text=text)`` gives."""
    drawn = torch.Generator().manual_seed(seed)
    x = torch.randn(1, CHANNELS, SIDE, SIDE, generator=drawn)
    text = torch.randn(1, WORDS, WIDTH, generator=drawn)
    times = torch.linspace(1.0, 0.0, steps + 1)
    for now, later in itertools.pairwise(times):
        x = x + (later - now) * denoise(x, now.expand(1), text=text)
    return x
