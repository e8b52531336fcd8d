"""What the system says is free, and what this process holds."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from runtime.devices import memory
from runtime.devices.memory import free_bytes, give_back, read_in_libraries, resident_bytes


def test_what_this_machine_has_free() -> None:
    free = free_bytes("cpu")
    assert free is not None
    assert 0 < free <= psutil.virtual_memory().total
    assert free_bytes("meta") is None


@pytest.mark.parametrize(
    ("limit", "free"), [("max", None), ("1000", 1000 - 700 + 300), ("none at all", None)], ids=["max", "some", "broken"]
)
def test_a_control_group_may_allow_less_than_the_machine_has(tmp_path: Path, limit: str, free: int | None) -> None:
    """Files that it has cached are given back where memory runs short."""
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 400\nfile 300\nfile_mapped 5\n")
    assert memory._left_in_group(tmp_path) == free
    assert memory._left_in_group(tmp_path / "none") is None


def test_a_limit_has_a_group_of_its_own_where_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for allowed, group in ((None, None), (1, memory.GROUP.stat().st_ino), (1 << 62, None)):
        monkeypatch.setattr(memory, "_left_in_group", lambda allowed=allowed: allowed)
        assert memory.limited_group() == group


def test_libraries_are_read_in_once() -> None:
    read_in_libraries()
    before = resident_bytes()
    read_in_libraries()
    assert resident_bytes() - before < 4e6


def test_resident_memory_grows_with_what_is_held() -> None:
    before = resident_bytes()
    held = torch.ones(2**24)
    assert 0.9 * held.nbytes < resident_bytes() - before < 1.5 * held.nbytes


def test_what_torch_has_cached_on_a_gpu_is_free_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {
        "mem_get_info": (2, 10), "memory_reserved": 7, "memory_allocated": 4, "get_per_process_memory_fraction": 1.0,
    }  # fmt: skip
    emptied: list[int] = []
    for name, value in held.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    assert free_bytes("cuda:0") == 2 + 7 - 4
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 0.7)
    assert free_bytes("cuda:0") == 7 - 4, "what the process may have"
    give_back()
    assert emptied


@pytest.mark.gpu
def test_cached_memory_of_a_gpu_counts_as_free_and_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now = torch.cuda.mem_get_info(0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: now)  # other processes may use the GPU, too
    give_back()
    held = torch.empty(2**28, dtype=torch.uint8, device="cuda:0")
    less = free_bytes("cuda:0")
    reserved = torch.cuda.memory_reserved(0)
    del held
    free = free_bytes("cuda:0")
    assert free is not None
    assert less is not None
    assert free - less == 2**28
    give_back()
    assert reserved - torch.cuda.memory_reserved(0) >= 2**28


@pytest.mark.gpu
def test_what_a_gpu_has_free() -> None:
    free = free_bytes("cuda:0")
    assert free is not None
    assert 0 < free <= torch.cuda.get_device_properties(0).total_memory
