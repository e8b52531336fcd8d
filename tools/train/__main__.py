"""Trains the small denoisers that the repository ships (loss, s), on pictures that tools.pictures.shapes draws."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tools.command import command
from tools.pictures.grid import picture_grid
from tools.pictures.pipelines import (
    DENOISERS,
    HELD_OUT,
    TRAINED,
    call_arguments,
    load_codec,
)
from tools.pictures.shapes import Pictures, draw_labels
from tools.train.denoisers import train_denoiser
from tools.train.parts import train_classifier, train_codec
from tools.train.progress import TrainingRecipe

RECIPES = {
    "codec": TrainingRecipe(1000, 3e-3),
    "unet": TrainingRecipe(5500, 1e-3),
    "dit": TrainingRecipe(6500, 1e-3),
    "mmdit": TrainingRecipe(6500, 1e-3),
    "xl-unet": TrainingRecipe(5500, 1e-3, batch=24, drawn=4096),
    "linear-dit": TrainingRecipe(6500, 1e-3, batch=24, drawn=4096),
    "classifier": TrainingRecipe(800, 2e-3),
}


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
