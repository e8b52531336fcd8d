"""Which file holds a tensor, and reading or mapping it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from partitioner.graph.ir import TensorMeta
from runtime.transport.weight_files import FileState, MappedFile, WeightFiles, digest_of, read_stored


def files(folder: Path | str) -> WeightFiles:
    module: Any = SimpleNamespace(config=SimpleNamespace(_name_or_path=str(folder)))
    return WeightFiles(module)


def test_the_file_is_the_one_that_holds_the_values(tmp_path: Path) -> None:
    """Shards of a variant, beside the plain file and indexes that nobody reads."""
    tensors = {"a": torch.randn(3, 2), "b": torch.randn(4)}
    halves = {name: tensor.half() for name, tensor in tensors.items()}
    plain = tmp_path / "diffusion_pytorch_model.safetensors"
    shards = [tmp_path / f"diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    save_file(tensors, plain)
    for name, shard in zip(halves, shards, strict=True):
        save_file({name: halves[name]}, shard)
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    (tmp_path / "broken.safetensors").write_bytes(b"garbage")
    found = files(tmp_path)
    for name, shard in zip(tensors, shards, strict=True):
        for tensor, file in ((tensors[name], plain), (halves[name], shard)):
            stored = found.holding(name, tensor)
            assert stored is not None
            assert (stored.file, stored.dtype) == (file, tensor.dtype)
    assert found.holding("a", tensors["a"].view(2, 3)) is None
    assert found.holding("a", tensors["a"] + 1) is None
    assert found.holding("c", tensors["a"]) is None
    shards[0].unlink()
    cast = found.holding("a", halves["a"])
    assert cast is not None
    assert (cast.file, cast.dtype) == (plain, torch.float32)


def test_bytes_count_and_not_values(tmp_path: Path) -> None:
    save_file({"a": torch.tensor([0.0, float("nan")]), "b": torch.tensor(1.0)}, tmp_path / "a.safetensors")
    found = files(tmp_path)
    assert found.holding("a", torch.tensor([0.0, float("nan")])) is not None
    assert found.holding("a", torch.tensor([-0.0, float("nan")])) is None
    assert found.holding("b", torch.tensor(1.0)) is not None


def test_files_are_found_below_the_folder_and_where_they_are_mapped(tmp_path: Path) -> None:
    """A denoiser that was loaded with ``subfolder=``, from a folder or from the hub."""
    (tmp_path / "unet").mkdir()
    file = tmp_path / "unet" / "a.safetensors"
    save_file({"a": torch.arange(5000.0)}, file)
    stored = files(tmp_path).holding("a", torch.arange(5000.0))
    assert stored is not None
    assert stored.file == file
    assert files("owner/name").holding("a", torch.arange(5000.0)) is None
    mapped = MappedFile(file, FileState.of(file), ["a"])
    stored = files("owner/name").holding("a", mapped.tensors["a"])
    assert stored is not None
    assert stored.file == file
    mapped.close()


@pytest.mark.parametrize("folder", ["", "owner/name", "/nowhere/at/all"])
def test_a_denoiser_of_no_folder_has_no_files(folder: str) -> None:
    assert files(folder).holding("a", torch.zeros(1)) is None
    assert WeightFiles(torch.nn.Linear(1, 1)).holding("weight", torch.zeros(1)) is None


def test_a_mapping_notices_that_its_file_is_written_to(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"a": torch.arange(4.0)}, file)
    state = FileState.of(file)
    mapped = MappedFile(file, state, ["a"])
    mapped.tensors["a"].mul_(2)
    assert read_stored(file, "a", TensorMeta((4,), (1,), "float32")).tolist() == [0, 1, 2, 3]
    save_file({"a": torch.zeros(4)}, file)  # safetensors puts another file in its place
    assert not mapped.is_changed
    assert mapped.tensors["a"].tolist() == [0, 2, 4, 6]
    mapped.close()
    with pytest.raises(OSError, match="was written to"):
        MappedFile(file, state, ["a"])
    mapped = MappedFile(file, FileState.of(file), ["a"])
    with open(file, "r+b") as opened:
        opened.write(b"x")
    assert mapped.is_changed
    mapped.close()


def test_a_file_counts_as_the_same_by_what_it_holds(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1.0, dtype=torch.bfloat16), "c": torch.zeros(0, 3)}
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    save_file(tensors, one)
    save_file({**tensors, "a": tensors["a"].view(3, 2), "c": tensors["c"].double()}, other)
    for name in tensors:
        assert digest_of(one, name) is not None
        assert (digest_of(one, name) == digest_of(other, name)) == (name == "b")
    assert digest_of(tmp_path / "none.safetensors", "a") is None
    assert digest_of(one, "d") is None
    one.write_bytes(b"garbage")
    assert digest_of(one, "a") is None
