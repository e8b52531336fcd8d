"""Endless batches of pictures, and of their latents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from diffusers import AutoencoderTiny

from tools.pictures.shapes import Pictures, draw, draw_labels
from tools.train.progress import TrainingRecipe


def batches(seed: int, size: int) -> Iterator[Pictures]:
    """Endless batches of ``size`` pictures."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield draw(draw_labels(size, generator), generator)


@torch.no_grad()
def latent_batches(
    codec: AutoencoderTiny, recipe: TrainingRecipe, seed: int
) -> Iterator[tuple[torch.Tensor, Sequence[str]]]:
    """Endless batches of pictures' latents, scaled as denoisers see them, and their captions."""
    generator = torch.Generator().manual_seed(seed)
    latents, captions = torch.empty(0, 4, 8, 8), list[str]()
    for pictures in batches(seed, recipe.batch):
        made = codec.encode(pictures.pixels).latents * codec.config.scaling_factor
        yield made, pictures.captions
        if recipe.drawn:
            latents, captions = torch.cat([latents, made]), [*captions, *pictures.captions]
        if 0 < recipe.drawn <= len(latents):
            break
    while True:
        chosen = torch.randint(len(latents), (recipe.batch,), generator=generator)
        yield latents[chosen], [captions[number] for number in chosen.tolist()]
