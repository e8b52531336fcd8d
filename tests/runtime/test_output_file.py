"""The file that run-plan writes: refused before the first step where it cannot be, and never lost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from partitioner import writable
from partitioner.errors import UsageError
from runtime import output_file
from runtime.output_file import check_output, write_media

FRAMES = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setattr(writable, "ELSEWHERE", ())
    return folder


@pytest.mark.parametrize(
    ("suffix", "error", "why"),
    [(".mp4", ImportError, ""), (".PNG", RuntimeError, r" \(No encoder\)"), (".webp", OSError, r" \(No encoder\)")],
)
def test_a_format_that_nothing_here_writes_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, error: type[Exception], why: str
) -> None:
    """Whatever keeps it from being written: an encoder that is not there, or one that fails."""
    save = output_file._save

    def broken(media: list[Any], path: Path) -> None:
        save(media, path.with_suffix(".gif"))
        raise error("No encoder.\nInstall one.")

    monkeypatch.setattr(output_file, "_save", broken)
    with pytest.raises(UsageError, match=rf"nothing here writes {suffix.lower()}{why}; (pip install|take)"):
        check_output(tmp_path / f"a{suffix}", force=False)
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".webp", ".gif"])
def test_what_can_be_written_is_taken_and_leaves_no_trace(tmp_path: Path, suffix: str) -> None:
    check_output(tmp_path / f"a{suffix}", force=False)
    assert [path.name for path in tmp_path.rglob("*")] == ["temporary"]


def test_a_picture_with_transparency_becomes_a_jpeg(tmp_path: Path) -> None:
    write_media([Image.new("RGBA", (8, 8), "red")], tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as made:
        assert made.mode == "RGB"


def test_a_name_as_long_as_names_may_be_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 125 + ".png")
    check_output(path, force=False)
    write_media(FRAMES, path)
    assert path.is_file()


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
