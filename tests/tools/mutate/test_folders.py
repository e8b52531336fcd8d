"""Mutated folders differ from the original in one of the files that were to be mutated, and say in which."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from random import Random

import pytest

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
