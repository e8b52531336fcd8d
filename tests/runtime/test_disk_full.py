"""A disk that fills up while run-plan works, and a limit on the size of files: a sentence says where the picture is."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from runtime import generation
from runtime.cli import main
from tests.support.run_plan_home import Home

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("trace_once")]

SIDE = 32


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a disk")
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("no disk can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Leave no room on a disk."""
    with open(folder / "other", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def run(
    home: Home, monkeypatch: pytest.MonkeyPatch, then: Callable[[], None], output: Path, *more: str
) -> tuple[int, list[Any]]:
    """run-plan's exit code, and the picture that it has made; something happens once that is made."""
    pictures: list[Any] = []
    generate = generation.generate

    def generated(*given: Any) -> list[Any]:
        made = generate(*given)
        pictures.extend(made)
        then()
        return made

    monkeypatch.setattr(generation, "generate", generated)
    name = "stable_diffusion"
    arguments = [
        "--pipeline",
        str(home.pipeline(name)),
        "--prompt",
        "a cat",
        "--steps",
        "2",
        "--transport",
        "emulation",
    ]
    size = ["--height", str(SIDE), "--width", str(SIDE)]
    return main([str(home.plan(name)), *arguments, *size, "--output", str(output), *more]), pictures


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".gif"])
def test_a_picture_for_which_there_is_no_room_any_more_is_kept(
    suffix: str,
    home: Home,
    disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    output = disk / f"cat{suffix}"
    code, (picture, *_) = run(home, monkeypatch, lambda: fill(disk), output)
    *_, said = capsys.readouterr().err.splitlines()
    assert code == 2
    (kept,) = tmp_path.glob("run-plan-*")
    assert re.fullmatch(rf"run-plan: error: {output} cannot be written \(.+\); the result is in {kept}", said)
    assert kept.suffix == suffix
    with Image.open(kept) as made:
        assert made.size == (SIDE, SIDE)
        if suffix == ".png":
            assert made.tobytes() == picture.tobytes()
    assert [file.name for file in disk.iterdir()] == ["other"]


def test_a_trace_for_which_there_is_no_room_costs_no_picture(
    home: Home, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, trace = tmp_path / "cat.png", disk / "trace.json"
    code, _ = run(home, monkeypatch, lambda: fill(disk), output, "--trace", str(trace))
    *_, said = capsys.readouterr().err.splitlines()
    assert code == 2
    assert said == f"run-plan: error: {output} was written, but {trace} cannot be written: No space left on device"
    with Image.open(output) as made:
        made.load()
    assert [file.name for file in disk.iterdir()] == ["other"]


def test_a_limit_of_files_sizes_is_said(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python ignores the signal by which the system would end it."""
    least, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr("partitioner.writable.ELSEWHERE", ())
    output = tmp_path / "cat.png"
    try:
        code, _ = run(home, monkeypatch, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, most)), output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (least, most))
    *_, said = capsys.readouterr().err.splitlines()
    assert code == 2
    assert re.fullmatch(rf"run-plan: error: {output} cannot be written \(.+\); nor can a temporary file, .* lost", said)
    assert [file.name for file in tmp_path.iterdir()] == ["temporary"]
    assert list(temporary.iterdir()) == []
