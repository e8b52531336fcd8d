"""The file that run-plan writes: refused before the first step where it cannot be, and never lost."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from partitioner.errors import UsageError
from runtime import output_file
from runtime.output_file import check_output, check_writable, write_media

FRAMES = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_and_a_folder_that_is_not_there_are_refused_even_with_force(tmp_path: Path, force: bool) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(UsageError, match=r"--output .*a.png is a folder; name a file in it"):
        check_output(tmp_path / "a.png", force)
    with pytest.raises(UsageError, match=r"the folder .*none does not exist; make it or choose another --trace"):
        check_writable(tmp_path / "none" / "a.json", "--trace", force)


def test_a_dangling_link_is_something_that_is_there(tmp_path: Path) -> None:
    link = tmp_path / "a.png"
    link.symlink_to(tmp_path / "nowhere" / "b.png")
    with pytest.raises(UsageError, match="exists; choose another --output or add --force"):
        check_output(link, force=False)
    check_output(link, force=True)
    write_media(FRAMES, link)
    assert not link.is_symlink()


def test_a_folder_that_is_read_only_or_full_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        with pytest.raises(UsageError, match="cannot be written to; choose another --output"):
            check_output(tmp_path / "a.png", force=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 10, 0))
    with pytest.raises(UsageError, match=r"the disk of .* is full \(0 bytes are free\)"):
        check_output(tmp_path / "a.png", force=False)


def test_a_video_that_no_package_can_write_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_file, "VIDEO_PACKAGES", ("no_such_package",))
    with pytest.raises(UsageError, match=r"\.mp4 needs another package: pip install imageio"):
        check_output(tmp_path / "a.mp4", force=False)


@pytest.mark.parametrize(("name", "frames"), [("a.png", 1), ("a.GIF", 2)])
def test_it_is_written_whole_and_nothing_is_left_beside_it(tmp_path: Path, name: str, frames: int) -> None:
    path = tmp_path / name
    path.write_text("old")
    write_media(FRAMES, path)
    with Image.open(path) as made:
        assert getattr(made, "n_frames", 1) == frames
    assert sorted(file.name for file in tmp_path.iterdir()) == [name, "temporary"]


def test_what_cannot_be_written_is_kept_elsewhere(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "a.png"
    path.write_text("old")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(
        UsageError, match=r"a.png cannot be written \(No space left on device\); the result is in "
    ) as error:
        write_media(FRAMES, path)
    (kept,) = temporary.iterdir()
    assert str(kept) in str(error.value)
    with Image.open(kept) as made:
        assert made.size == (8, 8)
    assert path.read_text() == "old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "temporary"]


def test_frames_whose_encoder_fails_are_kept_in_a_format_that_needs_none(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("no ffmpeg")

    monkeypatch.setattr("diffusers.utils.export_to_video", missing)
    with pytest.raises(UsageError, match=r"cannot be written \(ImportError: no ffmpeg\); the result is in .*\.gif"):
        write_media(FRAMES, tmp_path / "a.mp4")
    assert [file.suffix for file in temporary.iterdir()] == [".gif"]


def test_that_nothing_could_be_kept_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(output_file, "_save", broken)
    with pytest.raises(UsageError, match="nor can a temporary file, so that the result is lost"):
        write_media(FRAMES, tmp_path / "a.png")
