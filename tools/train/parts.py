"""Trains what is beside the denoisers: the autoencoder, and the classifier of pictures."""

from __future__ import annotations

import torch
from diffusers import AutoencoderTiny
from torch import nn

from tools.pictures.classifier import Classifier
from tools.pictures.pipelines import (
    new_codec,
)
from tools.train.batches import batches
from tools.train.progress import TrainingProgress, TrainingRecipe


def train_codec(recipe: TrainingRecipe, seed: int) -> tuple[AutoencoderTiny, TrainingProgress]:
    """Reconstruct pictures from latents that are kept near mean 0 and deviation 1, with a little noise on them."""
    codec = new_codec().to(memory_format=torch.channels_last)  # several times as fast on a CPU
    progress = TrainingProgress([codec], recipe, "codec")
    for pictures in batches(seed, recipe.batch):
        latents = codec.encode(pictures.pixels.contiguous(memory_format=torch.channels_last)).latents
        rebuilt = codec.decode(latents + 0.05 * torch.randn_like(latents)).sample
        mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        progress.step((rebuilt - pictures.pixels).square().mean() + 0.01 * (mean**2 + (deviation - 1) ** 2).mean())
        if progress.done == 1:
            break
    with torch.no_grad():
        spread = float(codec.encode(next(batches(seed + 1, recipe.batch)).pixels).latents.std())
    codec.register_to_config(scaling_factor=1 / spread)
    return codec.to(memory_format=torch.contiguous_format).eval(), progress


def train_classifier(codec: AutoencoderTiny, recipe: TrainingRecipe, seed: int) -> tuple[Classifier, TrainingProgress]:
    """Train on pictures that went through the codec, with some noise added."""
    classifier = Classifier()
    progress = TrainingProgress([classifier], recipe, "classifier")
    for pictures in batches(seed, recipe.batch):
        with torch.no_grad():
            pixels = codec.decode(codec.encode(pictures.pixels).latents).sample
        logits = classifier(pixels + 0.1 * torch.rand(1) * torch.randn_like(pixels))
        losses = [nn.functional.cross_entropy(each, pictures.labels[:, i]) for i, each in enumerate(logits)]
        progress.step(torch.stack(losses).sum())
        if progress.done == 1:
            break
    return classifier.eval(), progress
