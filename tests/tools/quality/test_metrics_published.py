"""Metrics that need packages and weights: what is missing is said with the command that gets it, what is there is used.

The packages are replaced by ones that have only the names and arguments of theirs that are used (torchmetrics 1.9).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from partitioner.errors import UsageError
from tools.pictures.tokenizers import TOKENS, clip_tokenizer
from tools.quality.metrics_published import ALEXNET, INCEPTION, ClipScore, Fid, ImageReward, Lpips


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", os.environ.get("HF_HUB_OFFLINE", "1"))
    monkeypatch.setattr(torch.hub, "_hub_dir", torch.hub._hub_dir)


class FakeMetric:
    """The mean difference of what was given, as a torchmetrics metric gives and forgets it."""

    def __init__(self, **options: Any) -> None:
        self.options, self.given, self.dtype = options, list[tuple[torch.Tensor, bool]](), torch.float32

    def to(self, _device: str) -> FakeMetric:
        return self

    def set_dtype(self, dtype: torch.dtype) -> FakeMetric:
        self.dtype = dtype
        return self

    def __call__(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        self.given.append((one, False))
        return (one - other).abs().mean() * len(self.given)  # wrong if what came before is not forgotten

    def update(self, pixels: torch.Tensor, real: bool) -> None:
        self.given.append((pixels, real))

    def compute(self) -> torch.Tensor:
        means = [torch.stack([p.mean() for p, real in self.given if real is which]).mean() for which in (True, False)]
        return (means[0] - means[1]).abs()

    def reset(self) -> None:
        self.given.clear()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[FakeMetric]:
    """All packages are there; the metrics that were made."""
    made: list[FakeMetric] = []

    def make(**options: Any) -> FakeMetric:
        made.append(FakeMetric(**options))
        return made[-1]

    image: Any = ModuleType("torchmetrics.image")
    image.LearnedPerceptualImagePatchSimilarity = make
    fid: Any = ModuleType("torchmetrics.image.fid")
    fid.FrechetInceptionDistance = make
    reward: Any = ModuleType("ImageReward")
    reward.load = lambda file, device, med_config: RewardModel(file, med_config)
    modules = {"torchmetrics": ModuleType("torchmetrics"), "torchmetrics.image": image, "torchmetrics.image.fid": fid}
    modules |= {name: ModuleType(name) for name in ("torchvision", "torch_fidelity")} | {"ImageReward": reward}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return made


class RewardModel:
    def __init__(self, file: str, config: str) -> None:
        assert Path(file).name == "ImageReward.pt"
        assert Path(config).name == "med_config.json"

    def score(self, prompt: str, file: str) -> float:
        return len(prompt) + len(Path(file).name)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "checkpoints").mkdir()
    for name in (f"checkpoints/{ALEXNET}", f"checkpoints/{INCEPTION}", "ImageReward.pt"):
        torch.save({"weight": torch.zeros(1)}, tmp_path / name)
    (tmp_path / "med_config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "missing", "package"),
    [
        (Lpips, "torchmetrics.image", "torchmetrics"),
        (Lpips, "torchvision", "torchvision"),
        (Fid, "torch_fidelity", "torch-fidelity"),
        (ImageReward, "ImageReward", "image-reward"),
    ],
)
@pytest.mark.usefixtures("installed")
def test_a_missing_package_is_named(
    kind: Any, missing: str, package: str, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UsageError, match=f"needs the package {package}, which .*pip install {package}, or leave"):
        kind(weights, "cpu")


def test_a_package_that_does_not_suit_the_others_is_named(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "torchvision", raising=False)
        patch.syspath_prepend(str(tmp_path))
        with pytest.raises(UsageError, match=r"torchvision, which cannot be imported \(operator torchvision::nms"):
            Lpips(weights, "cpu")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("kind", "file", "command"),
    [
        (Lpips, ALEXNET, "curl -L --create-dirs -o"),
        (Fid, INCEPTION, "curl -L --create-dirs -o"),
        (ClipScore, "clip-vit-large-patch14", "hf download openai/clip-vit-large-patch14 --local-dir"),
        (ImageReward, "ImageReward.pt", "hf download THUDM/ImageReward ImageReward.pt --local-dir"),
    ],
)
def test_missing_weights_are_named_with_the_command_that_gets_them(
    kind: Any, file: str, command: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"{file}, which is not there: {command}"):
        kind(tmp_path, "cpu")


@pytest.mark.usefixtures("installed")
def test_a_file_that_would_run_code_is_not_loaded(weights: Path) -> None:
    torch.save({"weight": print}, weights / "checkpoints" / INCEPTION)
    with pytest.raises(UsageError, match="no file of plain weights"):
        Fid(weights, "cpu")


def test_lpips_forgets_one_pair_before_the_next(installed: list[FakeMetric], weights: Path) -> None:
    metric = Lpips(weights, "cpu")
    assert installed[0].options == {"net_type": "alex", "normalize": True}
    assert torch.hub.get_dir() == str(weights), "where torchvision looks for the weights"
    ones = torch.ones(1, 3, 4, 4)
    assert [metric.of(ones, ones / 2), metric.of(ones, ones / 4)] == [0.5, 0.75]


def test_fid_is_of_all_that_was_added(installed: list[FakeMetric], weights: Path) -> None:
    metric = Fid(weights, "cpu")
    file = str(weights / "checkpoints" / INCEPTION)
    assert installed[0].options == {"normalize": True, "feature_extractor_weights_path": file}
    assert installed[0].dtype == torch.float64
    for value in (0.0, 1.0):
        metric.add(torch.full((1, 3, 4, 4), value), real=True)
    metric.add(torch.ones(1, 3, 2, 2), real=False)
    assert metric.result() == 0.5
    assert not installed[0].given


@pytest.mark.usefixtures("installed")
def test_a_reward_is_of_a_file_and_its_prompt(weights: Path) -> None:
    assert ImageReward(weights, "cpu").of(Path("x") / "00000-0.png", "a cat") == 16


def test_a_clip_score_is_the_cosine_of_both_features(tmp_path: Path) -> None:
    tokenizer = clip_tokenizer()
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": TOKENS}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(text_config=text, vision_config={**small, "image_size": 16, "patch_size": 8}, projection_dim=8)
    )
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16)
    folder = tmp_path / "clip-vit-large-patch14"
    model.save_pretrained(folder)
    CLIPProcessor(image_processor=processor, tokenizer=tokenizer).save_pretrained(folder)
    metric, pixels = ClipScore(tmp_path, "cpu"), torch.rand(1, 3, 20, 24)
    found = metric.of(pixels, "red circle")
    metric._model.visual_projection.weight.data.neg_()
    opposite = metric.of(pixels, "red circle")
    assert min(found, opposite) == 0.0
    given = CLIPProcessor(image_processor=processor, tokenizer=tokenizer)(
        text=["red circle"], images=[(pixels[0] * 255).round().byte()], return_tensors="pt"
    )
    with torch.no_grad():
        expected = model.eval()(**given).logits_per_image.item() / model.logit_scale.exp().item()
    assert max(found, opposite) == pytest.approx(100 * abs(expected), rel=1e-4)
