"""score: what papers print of a run: PSNR, LPIPS and FID against the original pictures and the true ones, and more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import interpolate

from partitioner.errors import UsageError
from partitioner.tables import table_text
from tools.pictures.similarity import psnr
from tools.quality.metrics_published import NETWORKS, ClipScore, Fid, ImageReward, Lpips
from tools.quality.protocol_pictures import PictureFolder, PictureSample, read_pixels

METRICS = ("psnr", *NETWORKS)
COLUMNS = {
    "run": "", "samples": "", "psnr_db": ".2f", "lpips": ".4f", "lpips_truth": ".4f", "fid": ".3f", "fid_truth": ".3f",
    "clip": ".3f", "imagereward": ".4f",
}  # fmt: skip


@dataclass(frozen=True)
class Networks:
    """The metrics that need a network; None for those that were not asked for."""

    lpips: Lpips | None = None
    fid: Fid | None = None
    clip: ClipScore | None = None
    imagereward: ImageReward | None = None


def networks(metrics: Sequence[str], weights: Path, device: str) -> Networks:
    """Load what some of METRICS need.

    Raises:
        UsageError: a package or a file of weights is missing.
    """
    kinds: dict[str, Any] = {"lpips": Lpips, "fid": Fid, "clip": ClipScore, "imagereward": ImageReward}
    return Networks(**{name: kind(weights, device) for name, kind in kinds.items() if name in metrics})


def score(
    run: str, folder: PictureFolder, original: PictureFolder, samples: Sequence[PictureSample], *,
    truth: Path | None, metrics: Sequence[str], nets: Networks,
) -> dict[str, Any]:  # fmt: skip
    """The row of a run, means over the samples as papers print them; None for what was not measured.

    Pictures are compared with those of the same prompt and seed.

    Args:
        original: the sequential pictures ("w/ orig."); where ``folder`` is this one, nothing is compared with it.
        truth: folder of the pictures that the prompts describe ("w/ G.T."), brought to the size of the made ones for
            LPIPS; None for none.
    """
    compared = folder is not original
    found: dict[str, list[float]] = {name: [] for name in ("psnr_db", "lpips", "lpips_truth", "clip", "imagereward")}
    for sample in samples:
        pixels = folder.pixels(sample)
        if compared:
            reference = original.pixels(sample)
            if "psnr" in metrics:
                found["psnr_db"].append(float(psnr(pixels, reference)))
            if nets.lpips is not None:
                found["lpips"].append(nets.lpips.of(pixels, reference))
        if nets.lpips is not None and truth is not None:
            found["lpips_truth"].append(nets.lpips.of(pixels, _of_size(true_pixels(truth, sample), pixels)))
        if nets.clip is not None:
            found["clip"].append(nets.clip.of(pixels, sample.prompt.text))
        if nets.imagereward is not None:
            found["imagereward"].append(nets.imagereward.of(folder.file(sample), sample.prompt.text))
    row: dict[str, Any] = {"run": run, "samples": len(samples)}
    row |= {name: sum(values) / len(values) if values else None for name, values in found.items()}
    row["fid"] = _fid(nets.fid, folder, original, samples, None) if nets.fid is not None and compared else None
    row["fid_truth"] = _fid(nets.fid, folder, original, samples, truth) if nets.fid is not None and truth else None
    return row


def true_pixels(truth: Path, sample: PictureSample) -> torch.Tensor:
    """The picture that a sample's prompt describes, in its own size."""
    assert sample.prompt.image is not None
    return read_pixels(truth / sample.prompt.image)


def check_truth(truth: Path, samples: Sequence[PictureSample]) -> None:
    """Refuse samples whose true picture is not there.

    Raises:
        UsageError: a prompt names no picture, or one that the folder does not hold.
    """
    for sample in samples:
        if sample.prompt.image is None:
            raise UsageError(f"--images: the prompts name no pictures ({sample.prompt.text!r}); give COCO's captions")
        if not (truth / sample.prompt.image).is_file():
            raise UsageError(f"--images {truth} has no {sample.prompt.image}, which {sample.prompt.text!r} describes")


def scores_table(rows: Sequence[dict[str, Any]]) -> str:
    """One line per run; "-" for what was not measured."""
    cells = [["-" if row[name] is None else format(row[name], form) for name, form in COLUMNS.items()] for row in rows]
    return table_text(list(COLUMNS), cells, left={0})


def _fid(
    fid: Fid, folder: PictureFolder, original: PictureFolder, samples: Sequence[PictureSample], truth: Path | None
) -> float:
    """From the true pictures, each once however many seeds its prompt has, or without them from the originals."""
    seen: set[int] = set()
    for sample in samples:
        fid.add(folder.pixels(sample), real=False)
        if truth is None:
            fid.add(original.pixels(sample), real=True)
        elif sample.number not in seen:
            seen.add(sample.number)
            fid.add(true_pixels(truth, sample), real=True)
    return fid.result()


def _of_size(pixels: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    size = (other.shape[-2], other.shape[-1])
    return interpolate(pixels, size, mode="bilinear", antialias=True).clamp(0, 1)
