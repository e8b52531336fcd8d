"""What of a mapped file was written to, and where mappings lie."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from runtime.transport.mapped_memory import is_within, mapped_files, private_mappings, written_pages


def test_a_write_shows_in_the_page_that_it_is_made_in(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1 << 20), "b": torch.zeros(1 << 16)}, tmp_path / "x.safetensors")
    tensors = dict(enumerate(load_file(tmp_path / "x.safetensors").values()))
    assert mapped_files("x.safetensors") == [tmp_path / "x.safetensors"]
    places = private_mappings()
    assert all(is_within(places, tensor.data_ptr()) for tensor in tensors.values())
    assert not is_within(places, torch.zeros(1 << 20).data_ptr())
    assert [float(tensor.sum()) for tensor in tensors.values()] == [0, 0]
    before = written_pages(tensors)
    assert not any(sum(pages) for pages in before.values()), "reading is no write"
    tensors[0].data[777_777] = 1
    after = written_pages(tensors)
    assert (sum(after[0]), after[1]) == (1, before[1])
    tensors[1].data.add_(1)
    assert 0 not in written_pages(tensors)[1]
