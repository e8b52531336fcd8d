"""Whether a file can be written is found out before the work, and a result that cannot be written is kept elsewhere."""

from __future__ import annotations

import os
import shutil
import socket
from collections import namedtuple
from pathlib import Path

import pytest

from partitioner import writable
from partitioner.errors import UsageError
from partitioner.writable import check_apart, check_writable, kept_elsewhere

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_place_for_a_file_is_refused_even_with_force(tmp_path: Path, force: bool) -> None:
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "to-folder.png").symlink_to(tmp_path / "folder.png")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket.png"))
    (tmp_path / "file").write_text("")
    refused = {
        tmp_path / "folder.png": "--output .*folder.png is a folder; name a file in it",
        tmp_path / "to-folder.png": "is a folder; name a file in it",
        tmp_path / "none" / "a.png": "there is no folder .*none; make it or choose another --output",
        tmp_path / "pipe.png": "is no file but a device, a pipe or a socket",
        tmp_path / "socket.png": "is no file but a device, a pipe or a socket",
        Path("/dev/full"): "is no file but a device, a pipe or a socket",
        tmp_path / "file" / "a.png": "cannot be written: Not a directory",
        tmp_path / ("a" * 300): "cannot be written: File name too long",
        tmp_path / "a\0b": "cannot be written: .*null",
        Path("/proc/a.png"): "'/proc/a.png' cannot be written: ",  # where root may write by its permissions
    }
    before = sorted(tmp_path.rglob("*"))
    for path, message in refused.items():
        with pytest.raises(UsageError, match=message):
            check_writable(path, "--output", force)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_and_a_link_are_overwritten_with_force_only(tmp_path: Path) -> None:
    read_only, dangling = tmp_path / "a.png", tmp_path / "b.png"
    read_only.write_text("precious")
    read_only.chmod(0o400)
    dangling.symlink_to(tmp_path / "nowhere" / "c.png")
    for path in (read_only, dangling):
        with pytest.raises(UsageError, match="exists already; choose another --output, or overwrite it with --force"):
            check_writable(path, "--output", force=False)
        check_writable(path, "--output", force=True)
    assert read_only.read_text() == "precious"
    assert dangling.is_symlink()


def test_a_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 10, 0))
    with pytest.raises(UsageError, match=r"the disk of .* is full \(0 bytes are free\); choose another --trace"):
        check_writable(tmp_path / "a.json", "--trace", force=False)


def test_one_file_for_two_options_is_refused(tmp_path: Path) -> None:
    (tmp_path / "again").symlink_to(tmp_path)
    check_apart({"--output": tmp_path / "a", "--trace": tmp_path / "b", "--other": None})
    with pytest.raises(UsageError, match="--output and --trace name the same file"):
        check_apart({"--output": tmp_path / "a", "--trace": tmp_path / "again" / "a"})


def test_a_result_goes_where_there_is_room_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full, free = tmp_path / "full", tmp_path / "free"
    full.mkdir()
    free.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(full))
    monkeypatch.setattr(writable, "ELSEWHERE", (str(tmp_path / "none"), str(free)))

    def write(path: Path) -> None:
        path.write_text("whole")
        if path.parent == full:
            raise OSError(28, "No space left on device")

    kept = kept_elsewhere("run-plan", ".png", write)
    assert kept is not None
    assert (kept.parent, kept.read_text()) == (free, "whole")
    assert list(full.iterdir()) == []
    monkeypatch.setattr(writable, "ELSEWHERE", ())
    assert kept_elsewhere("run-plan", ".png", write) is None
