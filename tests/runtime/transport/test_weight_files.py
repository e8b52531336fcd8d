"""Which file holds a tensor, and reading or mapping it."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from partitioner.graph.nodes import TensorMeta
from runtime.errors import WeightsChanged
from runtime.transport import weight_files
from runtime.transport.weight_files import FileState, MappedFile, OpenFile, WeightFiles, digest_of, read_stored


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


def test_what_is_no_file_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a pipe waits until somebody writes to it."""
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "endless.safetensors").symlink_to("/dev/zero")
    (tmp_path / "itself.safetensors").symlink_to("itself.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    save_file({"a": torch.ones(3)}, tmp_path / "the.safetensors")

    def open_file(file: Path, framework: str) -> Any:
        assert file.is_file(), file
        return safe_open(file, framework)

    monkeypatch.setattr(weight_files, "safe_open", open_file)
    assert files(tmp_path).holding("a", torch.ones(3)) is not None


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
    mapped = MappedFile(OpenFile(file), FileState.of(file), ["a"])
    stored = files("owner/name").holding("a", mapped.tensors["a"])
    assert stored is not None
    assert stored.file == file


@pytest.mark.parametrize("folder", ["", "owner/name", "/nowhere/at/all"])
def test_a_denoiser_of_no_folder_has_no_files(folder: str) -> None:
    assert files(folder).holding("a", torch.zeros(1)) is None
    assert WeightFiles(torch.nn.Linear(1, 1)).holding("weight", torch.zeros(1)) is None


def test_a_file_that_is_open_stays_the_same_whoever_has_its_name(tmp_path: Path) -> None:
    """As where hubs keep it: a link in the folder, to a file in a cache."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "folder").mkdir()
    link, file = tmp_path / "folder" / "a.safetensors", tmp_path / "cache" / "1"
    save_file({"a": torch.arange(4.0)}, file)
    link.symlink_to(file)
    stored = files(tmp_path / "folder").holding("a", torch.arange(4.0))
    assert stored is not None
    assert stored.file == link
    meta = TensorMeta((4,), (1,), "float32")
    mapped = MappedFile(stored.opened, stored.state, ["a"])
    mapped.tensors["a"].mul_(2)
    link.unlink()
    save_file({"a": torch.zeros(4)}, tmp_path / "cache" / "2")
    link.symlink_to(tmp_path / "cache" / "2")
    assert stored.opened.state == stored.state
    assert mapped.tensors["a"].tolist() == [0, 2, 4, 6]
    assert read_stored(stored.opened.path, "a", meta, 0, stored.digest).tolist() == [0, 1, 2, 3]
    save_file({"a": torch.ones(4)}, file)  # another file takes its place, and it has no name any more
    assert not stored.opened.state.may_hold_the_same(FileState.of(file))
    assert stored.opened.state.may_hold_the_same(stored.state)
    assert read_stored(stored.opened.path, "a", meta, 0, stored.digest).tolist() == [0, 1, 2, 3]
    with pytest.raises(WeightsChanged, match=r"cache/1 was written to before a rank could read a from it: load"):
        read_stored(file, "a", meta, 0, stored.digest)


def test_what_was_written_to_is_neither_mapped_nor_read(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"a": torch.arange(4.0)}, file)
    opened, state, times = OpenFile(file), FileState.of(file), file.stat()
    expected, meta = digest_of(file, "a"), TensorMeta((2, 2), (2, 1), "float64")
    with pytest.raises(WeightsChanged, match="was written to"):
        read_stored(file, "a", meta, 0, expected)  # another shape
    meta = TensorMeta((4,), (1,), "float64")
    assert read_stored(file, "a", meta, 8, expected).tolist() == [0, 1, 2, 3]
    with open(file, "r+b") as written:
        written.seek(-1, 2)
        written.write(b"?")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(OSError, match=r"a\.safetensors was written to"):
        MappedFile(opened, state, ["a"])
    with pytest.raises(WeightsChanged, match=r"a\.safetensors was written to before a rank could read a"):
        read_stored(opened.path, "a", meta, 0, expected)
    file.write_bytes(b"")
    with pytest.raises(
        WeightsChanged, match=r"a\.safetensors was to be read by a rank, and has no a any more \(.*\): load"
    ):
        read_stored(opened.path, "a", meta, 0, expected)


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
