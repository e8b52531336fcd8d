"""Mutated folders differ from the original in one of the files that were to be mutated, and say in which."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from random import Random

import pytest
from safetensors.torch import load_file

from tools.mutate.folders import mutate_folder, mutate_weights

HEADER = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
FILES = {
    "model_index.json": b'{"_class_name": "Pipeline", "unet": ["diffusers", "UNet"]}',
    "unet/config.json": b'{"_class_name": "UNet", "layers": 2}',
    "unet/model.safetensors": struct.pack("<Q", len(HEADER)) + HEADER + bytes(8),
    "tokenizer/merges.txt": b"#version: 0.2\n",
}


@pytest.mark.parametrize(
    ("mutate", "suffixes"), [(mutate_folder, {".json", ".txt"}), (mutate_weights, {".safetensors"})]
)
def test_some_files_are_mutated_and_named(mutate: object, suffixes: set[str], tmp_path: Path) -> None:
    changed: set[str] = set()
    for number in range(60):
        folder = tmp_path / str(number)
        for name, data in FILES.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        what = mutate(folder, Random(number))  # type: ignore[operator]
        named = {part.split(":")[0] for part in what.split("; ")}
        different = {
            name for name, data in FILES.items() if not (folder / name).is_file() or content(folder / name) != data
        }
        whole_folder = "a part's folder" in what
        assert whole_folder or different <= named, what
        changed |= different
    assert {Path(name).suffix for name in changed} >= suffixes


def content(file: Path) -> bytes:
    with file.open("rb") as opened:  # which may be large, or without end
        return opened.read(10_000)


def test_pickles_stand_where_libraries_look_for_them_and_would_be_found_out(tmp_path: Path) -> None:
    made = set()
    for number in range(120):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(FILES["unet/model.safetensors"])
        mutate_weights(folder, Random(number))
        for file in folder.glob("*.bin"):
            made.add(file.name)
            data = file.read_bytes()
            assert b"made-by-a-pickle" in data or data == FILES["unet/model.safetensors"][:99]
    assert made == {"pytorch_model.bin"}


def test_a_tensor_becomes_another_in_a_sound_file(tmp_path: Path) -> None:
    changed = set()
    for number in range(200):
        file = tmp_path / f"{number}" / "model.safetensors"
        file.parent.mkdir()
        file.write_bytes(FILES["unet/model.safetensors"])
        what = mutate_weights(file.parent, Random(number))
        if what.startswith("model.safetensors: the tensor w "):
            tensors = load_file(file)
            changed.add((len(tensors), *((tensors["w"].dtype, tensors["w"].shape) if "w" in tensors else ())))
    assert len(changed) > 6
