"""The metrics that papers print and that need a network: LPIPS, FID, CLIP score and ImageReward.

Their packages are looked for when a metric is asked for, and their weights are files at hand: nothing is fetched from
anywhere. ``--weights DIR`` has the files as the packages' own caches have them:

    DIR/checkpoints/alexnet-owt-7be5be79.pth                          LPIPS (torch.hub's folder, and so its default)
    DIR/checkpoints/weights-inception-2015-12-05-6726825d.pth         FID
    DIR/clip-vit-large-patch14/                                       CLIP score, a folder of transformers
    DIR/ImageReward.pt, DIR/med_config.json                           ImageReward, which also takes the tokenizer
                                                                      bert-base-uncased from the hub's local cache
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cosine_similarity

from partitioner.errors import UsageError, first_line

NETWORKS = ("lpips", "fid", "clip", "imagereward")
ALEXNET = "alexnet-owt-7be5be79.pth"
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
CLIP = "clip-vit-large-patch14"
_ALEXNET_FROM = f"https://download.pytorch.org/models/{ALEXNET}"
_INCEPTION_FROM = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION}"


class Lpips:
    """LPIPS (AlexNet) by torchmetrics, as DistriFusion's and Hybridiff's scripts compute it."""

    def __init__(self, weights: Path, device: str) -> None:
        _package("torchvision", "lpips", "torchvision")
        image = _package("torchmetrics.image", "lpips", "torchmetrics")
        _checkpoint(weights, "lpips", ALEXNET, _ALEXNET_FROM)
        torch.hub.set_dir(str(weights))  # where torchvision looks
        self._metric = image.LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).to(device)
        self._device = device

    @torch.no_grad()
    def of(self, pixels: torch.Tensor, reference: torch.Tensor) -> float:
        """The distance of two pictures (1, 3, height, width) in [0, 1]."""
        distance = float(self._metric(pixels.to(self._device), reference.to(self._device)))
        self._metric.reset()
        return distance


class Fid:
    """The Fréchet distance of Inception features by torchmetrics, with torch-fidelity's network."""

    def __init__(self, weights: Path, device: str) -> None:
        _package("torch_fidelity", "fid", "torch-fidelity")
        image = _package("torchmetrics.image.fid", "fid", "torchmetrics")
        file = _checkpoint(weights, "fid", INCEPTION, _INCEPTION_FROM)
        _check_plain(file)  # torch-fidelity would run what a hostile file holds
        made = image.FrechetInceptionDistance(normalize=True, feature_extractor_weights_path=str(file))
        self._metric = made.set_dtype(torch.float64).to(device)
        self._device = device

    @torch.no_grad()
    def add(self, pixels: torch.Tensor, *, real: bool) -> None:
        """Count a picture (1, 3, height, width) in [0, 1] in, of those that are compared or of those compared with."""
        self._metric.update(pixels.to(self._device), real=real)

    def result(self) -> float:
        """The distance of all that was added; what was added is forgotten."""
        distance = float(self._metric.compute())
        self._metric.reset()
        return distance


class ClipScore:
    """100 times the cosine of a picture's and its prompt's CLIP features, at least 0, by transformers.

    As torchmetrics defines it, whose own CLIPScore (1.9) fails with transformers 5.
    """

    def __init__(self, weights: Path, device: str) -> None:
        folder = weights / CLIP
        _need(folder, "clip", f"hf download openai/{CLIP} --local-dir {folder}")
        from transformers import CLIPModel, CLIPProcessor

        self._model = CLIPModel.from_pretrained(folder, local_files_only=True).to(device).eval()
        self._processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
        self._device = device

    @torch.no_grad()
    def of(self, pixels: torch.Tensor, text: str) -> float:
        """Of one picture (1, 3, height, width) in [0, 1] and its prompt."""
        picture = (pixels[0] * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        given = self._processor(text=[text], images=[picture], return_tensors="pt", padding=True, truncation=True)
        made = self._model(**given.to(self._device))
        return max(0.0, 100 * float(cosine_similarity(made.image_embeds, made.text_embeds)))


class ImageReward:
    """The reward of a picture for its prompt by the package image-reward."""

    def __init__(self, weights: Path, device: str) -> None:
        package = _package("ImageReward", "imagereward", "image-reward")
        files = weights / "ImageReward.pt", weights / "med_config.json"
        for file in files:
            _need(file, "imagereward", f"hf download THUDM/ImageReward {file.name} --local-dir {weights}")
        _check_plain(files[0])
        self._model = package.load(str(files[0]), device=device, med_config=str(files[1]))

    @torch.no_grad()
    def of(self, file: Path, text: str) -> float:
        """Of a picture file and its prompt."""
        return float(self._model.score(text, str(file)))


def default_weights() -> Path:
    """The folder of the weights where none is named: torch.hub's."""
    return Path(torch.hub.get_dir())


def _package(module: str, metric: str, package: str) -> Any:
    """The module, with the hub switched off while it is loaded and after.

    Raises:
        UsageError: the package is not installed, or does not suit the others that are.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        return importlib.import_module(module)
    except Exception as error:  # one that was built for another torch raises whatever it does
        why = "is not installed" if isinstance(error, ModuleNotFoundError) else "cannot be imported"
        raise UsageError(
            f"--metrics {metric} needs the package {package}, which {why} ({first_line(error)}): "
            f"pip install {package}, or leave {metric} out"
        ) from error


def _checkpoint(weights: Path, metric: str, name: str, source: str) -> Path:
    """A metric's file, where torch's own cache has it; refused where it is not there."""
    file = weights / "checkpoints" / name
    _need(file, metric, f"curl -L --create-dirs -o {file} {source}")
    return file


def _need(path: Path, metric: str, command: str) -> None:
    if not path.exists():
        raise UsageError(
            f"--metrics {metric} needs {path}, which is not there: {command}; or name its folder with --weights, or "
            f"leave {metric} out"
        )


def _check_plain(file: Path) -> None:
    """Refuse a file of weights that holds anything but plain tensors."""
    try:
        torch.load(file, map_location="meta", weights_only=True)
    except Exception as error:  # whatever a file that is none brings about
        raise UsageError(f"{file} is no file of plain weights: {first_line(error)}") from error
