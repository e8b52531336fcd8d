"""Pictures on disk: one per prompt and seed, made once, and never mixed with those of another run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from partitioner.errors import UsageError
from tools.quality.protocol_pictures import PictureFolder, PictureSample, read_pixels, samples_of
from tools.quality.protocol_prompts import Prompt

ABOUT = {"run": "engine", "steps": 50, "arguments": {}}
PROMPTS = [Prompt("a cat"), Prompt("a dog"), Prompt("a bird")]


def test_samples_have_seeds_of_their_own_that_do_not_depend_on_the_limit() -> None:
    assert [(sample.number, sample.seed) for sample in samples_of(PROMPTS, 2, 2)] == [(0, 0), (1, 1), (0, 3), (1, 4)]
    assert set(samples_of(PROMPTS, 1, 2)) < set(samples_of(PROMPTS, 2, None))


def test_what_is_there_is_not_missing_and_is_read_as_it_was(tmp_path: Path) -> None:
    samples = samples_of(PROMPTS, 1, None)
    folder = PictureFolder(tmp_path / "engine", ABOUT)
    folder.save(samples[1], Image.new("RGB", (4, 2), (255, 0, 51)))
    (tmp_path / "engine" / f".{samples[0].name}.part").write_bytes(b"half a picture")
    again = PictureFolder(tmp_path / "engine", dict(ABOUT))
    assert again.missing(samples) == [samples[0], samples[2]]
    pixels = again.pixels(samples[1])
    assert pixels.shape == (1, 3, 2, 4)
    assert torch.allclose(pixels[0, :, 0, 0], torch.tensor([1.0, 0.0, 0.2]))


def test_pictures_of_another_run_are_not_gone_on_with(tmp_path: Path) -> None:
    PictureFolder(tmp_path / "a", ABOUT)
    with pytest.raises(UsageError, match="made with steps 50, not 25: give another --out"):
        PictureFolder(tmp_path / "a", {**ABOUT, "steps": 25})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "holiday.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"no about\.json"):
        PictureFolder(tmp_path / "b", ABOUT)


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    folder = PictureFolder(tmp_path / "a", ABOUT)
    sample = PictureSample(0, 0, PROMPTS[0])
    folder.file(sample).write_bytes(b"no picture")
    with pytest.raises(UsageError, match=r"00000-0.png is no picture"):
        read_pixels(folder.file(sample))
