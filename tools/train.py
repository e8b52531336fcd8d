"""Trains the small denoisers that the repository ships (loss, s), on pictures that tools.pictures.shapes draws.

    python -m tools.train codec        # autoencoder, shared by all; five minutes
    python -m tools.train unet         # Stable Diffusion's topology; at most 60 minutes on 2 cores
    python -m tools.train dit          # PixArt's class; likewise
    python -m tools.train mmdit        # Stable Diffusion 3's class, flow matching; likewise
    python -m tools.train xl-unet      # held out: Stable Diffusion XL's topology, velocity prediction; likewise
    python -m tools.train linear-dit   # held out: Sana's class, flow matching; likewise
    python -m tools.train classifier   # minutes

Each writes to tools/trained/ (``--output``) a diffusers pipeline folder in float16, training.json with how it was made,
and samples.png. Latent diffusion as in Stable Diffusion: noise prediction on the scaled-linear schedule, or velocity
prediction on straight paths (flow matching). The text encoder is trained along, and one prompt in ten is empty, for
guidance. No choice of the engine is made on the two that are held out. The shipped unet and dit took 42 and 52 minutes
at the same time, on one thread of a core each, the held-out two 41 and 44 likewise; the mmdit took 43 minutes beside
other work.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, SanaPipeline, StableDiffusion3Pipeline, StableDiffusionXLPipeline
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextModel

from runtime.denoiser import denoiser_name
from tools.command import command
from tools.pictures.classifier import Classifier
from tools.pictures.grid import picture_grid
from tools.pictures.pipelines import (
    DENOISERS,
    HELD_OUT,
    TRAINED,
    call_arguments,
    load_codec,
    new_codec,
    new_pipeline,
)
from tools.pictures.shapes import SIZE, Pictures, draw, draw_labels
from tools.pictures.tokenizers import TOKENS

# Stable Diffusion 3's pipeline appends this many empty tokens, unless told otherwise, where the third text encoder is
# missing, as here. One step in LONG_EVERY has them, and of the batch as many pictures as take the time of a usual step.
EMPTY_TOKENS, LONG_EVERY, LONG_BATCH = 256, 8, 8


@dataclass(frozen=True)
class TrainingRecipe:
    """How something is trained.

    Attributes:
        iterations: at most; each with ``batch`` pictures.
        rate: the largest learning rate.
        batch: pictures.
        drawn: after so many pictures, batches are of those that were drawn already; 0 draws all anew.
        seconds: wall time after which training ends, if the iterations are not done by then.
    """

    iterations: int
    rate: float
    batch: int = 64
    drawn: int = 0
    seconds: float = math.inf


RECIPES = {
    "codec": TrainingRecipe(1000, 3e-3),
    "unet": TrainingRecipe(5500, 1e-3),
    "dit": TrainingRecipe(6500, 1e-3),
    "mmdit": TrainingRecipe(6500, 1e-3),
    "xl-unet": TrainingRecipe(5500, 1e-3, batch=24, drawn=4096),
    "linear-dit": TrainingRecipe(6500, 1e-3, batch=24, drawn=4096),
    "classifier": TrainingRecipe(800, 2e-3),
}


def batches(seed: int, size: int) -> Iterator[Pictures]:
    """Endless batches of ``size`` pictures."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield draw(draw_labels(size, generator), generator)


class TrainingProgress:
    """The optimizer, its learning rate (short warm-up, then a cosine), recent mean loss, and a log."""

    def __init__(self, modules: Sequence[nn.Module], recipe: TrainingRecipe, name: str) -> None:
        self._parameters = [p for module in modules for p in module.parameters()]
        self._recipe = recipe
        self._name = name
        self._optimizer = torch.optim.AdamW(self._parameters, lr=recipe.rate, weight_decay=0.01, fused=True)
        self._losses: list[float] = []
        self._start = time.perf_counter()

    @property
    def loss(self) -> float:
        recent = self._losses[-100:]
        return sum(recent) / len(recent)

    @property
    def iterations(self) -> int:
        """Those that are done."""
        return len(self._losses)

    @property
    def done(self) -> float:
        """From 0 to 1, at which training ends."""
        seconds = time.perf_counter() - self._start
        return min(1.0, max(self.iterations / self._recipe.iterations, seconds / self._recipe.seconds))

    def step(self, loss: torch.Tensor, shown: torch.Tensor | None = None) -> None:
        """One step of the optimizer. shown: the loss to report instead."""
        rate = self._recipe.rate * min(1.0, (self.iterations + 1) / 100) * (1 + math.cos(math.pi * self.done)) / 2
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._losses.append(float((loss if shown is None else shown).detach()))
        if len(self._losses) % 100 == 0:
            seconds = time.perf_counter() - self._start
            print(
                f"{self._name}: {self.iterations}/{self._recipe.iterations}, loss {self.loss:.4f}, {seconds:.0f} s",
                file=sys.stderr,
            )


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


def noise_lesson(
    scheduler: Any, latents: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(noisy latents, timesteps, target output, weights of the losses), for noise prediction."""
    kept_signal = scheduler.alphas_cumprod
    # Where little signal is left only the prompt tells what to draw, and the loss of the noise hardly does: it counts
    # for more there. The loss of the velocity would count as the square of this.
    weights = kept_signal.rsqrt() / kept_signal.rsqrt().mean()
    noise, timesteps = torch.randn_like(latents), torch.randint(len(kept_signal), (len(latents),))
    kept = kept_signal[timesteps].view(-1, 1, 1, 1)
    return kept.sqrt() * latents + (1 - kept).sqrt() * noise, timesteps, noise, weights[timesteps]


def angular_lesson(
    scheduler: Any, latents: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same for velocity prediction on the noise schedule ("v_prediction")."""
    noise, timesteps = torch.randn_like(latents), torch.randint(len(scheduler.alphas_cumprod), (len(latents),))
    kept = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noisy, velocity = (kept.sqrt() * a + (1 - kept).sqrt() * b for a, b in ((latents, noise), (noise, -latents)))
    return noisy, timesteps, velocity, torch.ones(len(latents))


def velocity_lesson(
    scheduler: Any, latents: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same for flow matching: velocity prediction on straight paths, with uniform noise levels."""
    noise, level = torch.randn_like(latents), torch.rand(len(latents))
    timesteps = level * scheduler.config.num_train_timesteps
    level = level.view(-1, 1, 1, 1)
    return (1 - level) * latents + level * noise, timesteps, noise - latents, torch.ones(len(latents))


LESSONS = {
    "unet": noise_lesson,
    "dit": noise_lesson,
    "mmdit": velocity_lesson,
    "xl-unet": angular_lesson,
    "linear-dit": velocity_lesson,
}


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


@torch.no_grad()
def samples(pipe: Any, kind: str, seed: int, count: int) -> torch.Tensor:
    """Samples of random captions with the pipeline's own sampler, 50 steps, guidance 3."""
    generator = torch.Generator().manual_seed(seed)
    captions = Pictures(torch.empty(0), draw_labels(count, generator)).captions
    made = pipe(
        captions,
        num_inference_steps=50,
        guidance_scale=3.0,
        generator=generator,
        output_type="pt",
        **call_arguments(kind),
    )
    pixels: torch.Tensor = made.images * 2 - 1
    return pixels


@command("tools.train")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit code 0."""
    parser = argparse.ArgumentParser(prog="python -m tools.train", description=__doc__.split("\n", 1)[0])
    parser.add_argument("what", choices=tuple(RECIPES))
    parser.add_argument("--output", type=Path, default=TRAINED, metavar="FOLDER", help="default: tools/trained")
    parser.add_argument("--iterations", type=int, default=None, help="fewer or more than the recipe's")
    parser.add_argument("--minutes", type=float, default=math.inf, help="end then if it is not done before")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=48, help="in samples.png; default 48, in rows of 8")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    recipe = RECIPES[options.what]
    recipe = replace(recipe, iterations=options.iterations or recipe.iterations, seconds=60 * options.minutes)
    start = time.perf_counter()
    folder = options.output / options.what
    codec = None if options.what == "codec" else load_codec(options.output / "codec")
    if options.what == "codec":
        made, progress = train_codec(recipe, options.seed)
        made.half().save_pretrained(folder)
    elif options.what == "classifier":
        made, progress = train_classifier(codec, recipe, options.seed)
        folder.mkdir(parents=True, exist_ok=True)
        made.save(folder / "classifier.safetensors")
    else:
        made, progress = train_denoiser(options.what, codec, recipe, options.seed)
        made.to(torch.float16).save_pretrained(folder)
    seconds = time.perf_counter() - start
    record = {
        "command": f"python -m tools.train {options.what} --iterations {recipe.iterations} --seed {options.seed} "
        f"--threads {options.threads}" + (f" --minutes {options.minutes:g}" if options.minutes < math.inf else ""),
        "iterations": progress.iterations,
        "batch": recipe.batch,
        "seconds": round(seconds),
        "final_loss": round(progress.loss, 5),
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
    }
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    if options.what in DENOISERS + HELD_OUT:
        made.to(torch.float32)
        made.set_progress_bar_config(disable=True)
        picture_grid(samples(made, options.what, options.seed, options.samples)).save(folder / "samples.png")
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
