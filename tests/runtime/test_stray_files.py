"""Folders with files beside those that diffusers reads: the engine follows what was loaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from partitioner.models.find_spec import model_spec
from partitioner.models.spec import trace_model
from runtime import parallelize
from runtime.loading import load_pipeline
from tests.support import pipelines
from tests.support.engines import contiguous, plan_of

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
@pytest.mark.usefixtures("trace_once")
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
