"""Scores: pictures of one prompt and seed are compared with each other, and means are taken as papers take them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from partitioner.errors import UsageError
from tools.quality.protocol_pictures import PictureFolder, PictureSample, samples_of
from tools.quality.protocol_prompts import Prompt
from tools.quality.protocol_scores import METRICS, Networks, check_truth, score, scores_table

PROMPTS = [Prompt("a cat", "cat.png"), Prompt("a dog", "dog.png")]


class Recorder:
    """Stands for any metric with a network: notes what it is given, as brightness, and returns its own results."""

    def __init__(self, *results: float) -> None:
        self.results, self.given = list(results), list[Any]()

    def of(self, one: Any, other: Any) -> float:
        self.given.append((_bright(one), _bright(other)))
        return self.results[len(self.given) - 1]

    def add(self, pixels: torch.Tensor, *, real: bool) -> None:
        self.given.append((_bright(pixels), real))

    def result(self) -> float:
        return self.results.pop(0)


def _bright(what: Any) -> Any:
    if isinstance(what, torch.Tensor):
        return round(255 * float(what.mean()))
    return what.name if isinstance(what, Path) else what


def filled(folder: Path, samples: list[PictureSample], first: int) -> PictureFolder:
    """Grey pictures, of brightness ``first`` and one more each."""
    made = PictureFolder(folder, {})
    for count, sample in enumerate(samples):
        made.save(sample, Image.new("RGB", (8, 8), (first + count,) * 3))
    return made


@pytest.fixture
def samples() -> list[PictureSample]:
    return samples_of(PROMPTS, 2, None)


@pytest.fixture
def folders(tmp_path: Path, samples: list[PictureSample]) -> tuple[PictureFolder, PictureFolder, Path]:
    """(the engine's, the original ones, folder of the true ones)"""
    for brightness, name in ((50, "cat.png"), (60, "dog.png")):
        Image.new("RGB", (20, 10), (brightness,) * 3).save(tmp_path / name)
    return filled(tmp_path / "engine", samples, 110), filled(tmp_path / "sequential", samples, 100), tmp_path


def test_every_metric_is_given_its_pairs(
    samples: list[PictureSample], folders: tuple[PictureFolder, PictureFolder, Path]
) -> None:
    engine, original, truth = folders
    lpips, fid = Recorder(*range(8)), Recorder(7.0, 8.0)
    clip, reward = Recorder(20, 21, 22, 23), Recorder(1, 2, 3, 6)
    nets = Networks(lpips=lpips, fid=fid, clip=clip, imagereward=reward)  # type: ignore[arg-type]
    row = score("engine", engine, original, samples, truth=truth, metrics=METRICS, nets=nets)
    assert lpips.given[:4] == [(110, 100), (110, 50), (111, 101), (111, 60)]
    assert clip.given == [(110, "a cat"), (111, "a dog"), (112, "a cat"), (113, "a dog")]
    assert reward.given[2] == ("00000-2.png", "a cat")
    made = [(110, False), (111, False), (112, False), (113, False)]
    assert sorted(fid.given[:8]) == sorted([*made, (100, True), (101, True), (102, True), (103, True)])
    assert sorted(fid.given[8:]) == sorted([*made, (50, True), (60, True)]), "a true picture counts once"
    assert row["psnr_db"] == pytest.approx(28.13, abs=0.01)  # 10 of 255
    assert (row["lpips"], row["lpips_truth"], row["fid"], row["fid_truth"]) == (3.0, 4.0, 7.0, 8.0)
    assert (row["clip"], row["imagereward"], row["samples"]) == (21.5, 3.0, 4)


def test_the_original_is_not_compared_with_itself(
    samples: list[PictureSample], folders: tuple[PictureFolder, PictureFolder, Path]
) -> None:
    _, original, _ = folders
    fid: Any = Recorder()
    row = score("sequential", original, original, samples, truth=None, metrics=("psnr", "fid"), nets=Networks(fid=fid))
    assert [row[name] for name in ("psnr_db", "lpips", "fid", "fid_truth")] == [None] * 4
    assert scores_table([row]).splitlines()[-1].split()[:3] == ["sequential", "4", "-"]


def test_pictures_that_are_not_there_are_named_before_anything_is_made(
    samples: list[PictureSample], folders: tuple[PictureFolder, PictureFolder, Path]
) -> None:
    truth = folders[2]
    check_truth(truth, samples)
    (truth / "dog.png").unlink()
    with pytest.raises(UsageError, match=r"has no dog.png, which 'a dog' describes"):
        check_truth(truth, samples)
    with pytest.raises(UsageError, match="the prompts name no pictures"):
        check_truth(truth, [PictureSample(0, 0, Prompt("a bird"))])
