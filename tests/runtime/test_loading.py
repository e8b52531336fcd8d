"""load_pipeline: a folder, with what its index says is missing left out; a variant of its weights; a single file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from partitioner.models.spec import model_spec, trace_model
from runtime import parallelize
from runtime.loading import load_pipeline
from tests.support import pipelines
from tests.support.engines import contiguous, plan_of
from tests.support.single_file import same_state, save_single_file


def test_an_index_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no JSON object"):
        load_pipeline(tmp_path, torch.float32)


def test_parts_that_are_missing_are_passed_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed: dict[str, Any] = {}
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", lambda _folder, **given: passed.update(given))
    index = {"_class_name": "Pipeline", "unet": ["diffusers", "UNet2DConditionModel"], "text_encoder_3": [None, None]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    load_pipeline(tmp_path, torch.float16)
    assert passed == {"torch_dtype": torch.float16, "variant": None, "text_encoder_3": None}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipelines.saved("stable_diffusion", tmp_path_factory.mktemp("saved"))


def test_a_single_file_gives_the_same_weights(saved: Path, tmp_path: Path) -> None:
    folder = load_pipeline(saved, torch.float32)
    save_single_file(folder, tmp_path / "one.safetensors")
    loaded = load_pipeline(tmp_path / "one.safetensors", torch.float32, config=str(saved))
    assert type(loaded) is type(folder)
    for part in ("unet", "vae", "text_encoder"):
        assert same_state(getattr(loaded, part), getattr(folder, part)), part


def test_a_variant_is_the_weights_of_that_name(saved: Path, tmp_path: Path) -> None:
    plain = load_pipeline(saved, torch.float32)
    plain.save_pretrained(tmp_path, variant="fp16", max_shard_size="50KB")
    assert list(tmp_path.glob("unet/diffusion_pytorch_model.fp16-*.safetensors"))
    assert same_state(load_pipeline(tmp_path, torch.float32, variant="fp16").unet, plain.unet)


def test_what_contradicts_itself_is_refused(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "one.safetensors").touch()
    with pytest.raises(ValueError, match=r"one.safetensors is a single file, which has no variant fp16"):
        load_pipeline(tmp_path / "one.safetensors", torch.float32, variant="fp16")
    with pytest.raises(ValueError, match="is not a single file, and has its own configuration instead of sd15"):
        load_pipeline(saved, torch.float32, config="sd15")


FILE = "diffusion_pytorch_model.safetensors"


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in load_file(folder / FILE).items()}


def put_shards_beside(unet: Path) -> None:
    """Of other values, with an index: which diffusers then reads instead of the whole file."""
    made = diffusers.UNet2DConditionModel.from_pretrained(unet)
    with torch.no_grad():
        made.conv_out.weight.add_(1)
    made.save_pretrained(unet.parent / "shards", max_shard_size="500KB")
    for file in (unet.parent / "shards").glob("diffusion*"):
        file.rename(unet / file.name)


def put_only_pickled(unet: Path) -> None:
    torch.save(tensors_of(unet), unet / "diffusion_pytorch_model.bin")
    (unet / FILE).unlink()


def put_variant_beside(unet: Path) -> None:
    save_file({name: tensor + 1 for name, tensor in tensors_of(unet).items()}, unet / FILE.replace(".s", ".ema.s"))


FOLDERS: dict[str, Callable[[Path], object]] = {
    "an index of another variant": lambda unet: (unet / f"{FILE.replace('.s', '.fp16.s')}.index.json").write_text("{}"),
    "an index that nobody reads": lambda unet: (unet / "diffusion_pytorch_model.bin.index.json").write_text("junk"),
    "a shard that nobody reads": lambda unet: (unet / FILE.replace(".", "-00001-of-00009.")).write_bytes(b"junk"),
    "pickled weights of other values": lambda unet: torch.save(
        {name: tensor + 1 for name, tensor in tensors_of(unet).items()}, unet / "diffusion_pytorch_model.bin"
    ),
    "a variant of other values": put_variant_beside,
    "shards of other values, which are read": put_shards_beside,
    "pickled weights alone": put_only_pickled,
}


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_an_engine_has_the_weights_that_diffusers_reads(saved: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "pipeline"))
    FOLDERS[name](folder / "unet")
    graph = trace_model(model_spec(str(folder), dtype="float32", height=32, width=32))
    plan = plan_of(graph, contiguous(graph, 2), warmup=2)
    pipe = load_pipeline(folder, torch.float32)
    expected = pipelines.call(pipe, steps=2)
    with parallelize(pipe, plan, exact=True) as engine:
        released = engine._first._weights._released.values()
        read = {each.mapped.opened.file.name for each in released}
        assert torch.equal(pipelines.call(pipe, steps=2), expected)
    assert torch.equal(pipelines.call(pipe, steps=2), expected)
    assert bool(read) == (name != "pickled weights alone")
