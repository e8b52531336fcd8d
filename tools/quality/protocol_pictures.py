"""PictureFolder: the pictures of one run on disk, one per prompt and seed; what is there is not made again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from partitioner.errors import UsageError
from tools.quality.protocol_prompts import Prompt

ABOUT = "about.json"  # how the pictures of a folder were made


@dataclass(frozen=True)
class PictureSample:
    """What one picture is made of: a prompt, its number in the file, and a seed."""

    number: int
    seed: int
    prompt: Prompt

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.number:05d}-{self.seed}.png"


def samples_of(prompts: Sequence[Prompt], seeds: int, limit: int | None) -> list[PictureSample]:
    """Every prompt with each of its seeds: the first is the prompt's number, as in the papers' scripts.

    Args:
        prompts: all of the file.
        seeds: how many per prompt.
        limit: how many prompts, from the first; None for all.
    """
    taken = list(enumerate(prompts))[:limit]
    return [
        PictureSample(number, number + turn * len(prompts), prompt) for turn in range(seeds) for number, prompt in taken
    ]


class PictureFolder:
    """A folder with the pictures of one run."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Make the folder, or go on with one.

        Args:
            folder: of this run alone.
            about: all that decides what the pictures look like; JSON values.

        Raises:
            UsageError: it holds pictures that were made otherwise, or that nothing is known of.
        """
        self._folder = folder
        file, wanted = folder / ABOUT, json.loads(json.dumps(dict(about)))
        if file.exists():
            known = json.loads(file.read_text())
            other = [f"{key} {known.get(key)!r}, not {wanted.get(key)!r}" for key in {**wanted, **known}
                     if known.get(key) != wanted.get(key)]  # fmt: skip
            if other:
                raise UsageError(
                    f"{folder} holds pictures made with {'; '.join(other)}: give another --out, or the options of then"
                )
        elif folder.is_dir() and any(folder.iterdir()):
            raise UsageError(f"{folder} holds files and no {ABOUT} that says how they were made: give another --out")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            _write(file, (json.dumps(wanted, indent=1) + "\n").encode())

    def file(self, sample: PictureSample) -> Path:
        """Where a sample's picture is, or will be."""
        return self._folder / sample.name

    def missing(self, samples: Iterable[PictureSample]) -> list[PictureSample]:
        """Those that have no picture yet."""
        return [sample for sample in samples if not self.file(sample).exists()]

    def save(self, sample: PictureSample, picture: Image.Image) -> None:
        """Write a picture whole or not at all."""
        part = self._folder / f".{sample.name}.part"
        picture.save(part, format="PNG")
        os.replace(part, self.file(sample))

    def pixels(self, sample: PictureSample) -> torch.Tensor:
        """A sample's picture: (1, 3, height, width) in [0, 1]."""
        return read_pixels(self.file(sample))


def read_pixels(file: Path) -> torch.Tensor:
    """A picture file: (1, 3, height, width) in [0, 1].

    Raises:
        UsageError: it is no picture that can be read.
    """
    try:
        with Image.open(file) as picture:
            values = np.array(picture.convert("RGB"))
    except OSError as error:
        raise UsageError(f"{file} is no picture that can be read: {error}") from error
    return torch.from_numpy(values).permute(2, 0, 1)[None].float() / 255


def _write(file: Path, content: bytes) -> None:
    part = file.with_suffix(".part")
    part.write_bytes(content)
    os.replace(part, file)
