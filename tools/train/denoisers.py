"""Trains denoisers, each together with the text encoders of its pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderTiny, SanaPipeline, StableDiffusion3Pipeline, StableDiffusionXLPipeline
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextModel

from runtime.denoiser import denoiser_name
from tools.pictures.pipelines import (
    new_pipeline,
)
from tools.pictures.shapes import SIZE
from tools.pictures.tokenizers import TOKENS
from tools.train.batches import latent_batches
from tools.train.lessons import LESSONS
from tools.train.progress import TrainingProgress, TrainingRecipe

# Stable Diffusion 3's pipeline appends this many empty tokens, unless told otherwise, where the third text encoder is
# missing, as here. One step in LONG_EVERY has them, and of the batch as many pictures as take the time of a usual step.
EMPTY_TOKENS, LONG_EVERY, LONG_BATCH = 256, 8, 8


def train_denoiser(
    kind: str, codec: AutoencoderTiny, recipe: TrainingRecipe, seed: int
) -> tuple[Any, TrainingProgress]:
    """Train denoiser and text encoders together; the pipeline returned has the moving average of their weights."""
    pipe = new_pipeline(kind, codec)
    denoiser = getattr(pipe, denoiser_name(pipe))
    encoders = [module for name, module in pipe.components.items() if name.startswith("text_encoder") and module]
    trained = nn.ModuleList([denoiser.to(memory_format=torch.channels_last), *encoders])
    trained.train()
    averaging = get_ema_multi_avg_fn(0.998)  # type: ignore[no-untyped-call]
    averaged = AveragedModel(trained, multi_avg_fn=averaging)
    progress = TrainingProgress([trained], recipe, kind)
    lesson = LESSONS[kind]
    for latents, captions in latent_batches(codec, recipe, seed):
        long = kind == "mmdit" and progress.iterations % LONG_EVERY == LONG_EVERY - 1
        count = LONG_BATCH if long else recipe.batch
        noisy, timesteps, wanted, weights = lesson(pipe.scheduler, latents[:count])
        captions = [c if keep else "" for c, keep in zip(captions[:count], torch.rand(count) > 0.1, strict=True)]
        arguments = condition(pipe, captions, EMPTY_TOKENS if long else 0)
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        predicted = denoiser(noisy, timestep=timesteps, return_dict=False, **arguments)[0]
        losses = (predicted - wanted).square().mean((1, 2, 3))
        progress.step((weights * losses).mean(), shown=losses.mean())
        averaged.update_parameters(trained)
        if progress.done == 1:
            break
    trained.load_state_dict(averaged.module.state_dict())
    denoiser.to(memory_format=torch.contiguous_format)
    trained.eval()
    return pipe, progress


def condition(pipe: Any, captions: Sequence[str], empty_tokens: int = 0) -> dict[str, Any]:
    """The prompt arguments of the denoiser, as the pipelines make them. empty_tokens: "mmdit" only."""
    words = list(captions)
    if isinstance(pipe, StableDiffusion3Pipeline):
        states, _, pooled, _ = pipe.encode_prompt(
            words, words, words, do_classifier_free_guidance=False, max_sequence_length=empty_tokens, device="cpu"
        )
        return {"encoder_hidden_states": states, "pooled_projections": pooled}
    if isinstance(pipe, StableDiffusionXLPipeline):
        states, _, pooled, _ = pipe.encode_prompt(words, do_classifier_free_guidance=False, device="cpu")
        sizes = torch.tensor([[SIZE, SIZE, 0.0, 0.0, SIZE, SIZE]]).repeat(len(words), 1)  # as drawn, not cropped
        return {"encoder_hidden_states": states, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
    if isinstance(pipe, SanaPipeline):
        states, mask, _, _ = pipe.encode_prompt(
            words, do_classifier_free_guidance=False, max_sequence_length=TOKENS, device="cpu"
        )
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}
    encoder = pipe.text_encoder
    found = pipe.tokenizer(words, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    if isinstance(encoder, CLIPTextModel):
        return {"encoder_hidden_states": encoder(found.input_ids)[0]}
    return {
        "encoder_hidden_states": encoder(found.input_ids, attention_mask=found.attention_mask)[0],
        "encoder_attention_mask": found.attention_mask,
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
