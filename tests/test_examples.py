"""The examples run as they are, each in a process of its own; some as a user would start it, others forked."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support import warm
from tests.support.two_agents import agents

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: str, folder: Path) -> str:
    """What an example prints."""
    done = warm.run(
        [str(EXAMPLES / name), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tried_here() -> None:
    names = {path.name for path in EXAMPLES.iterdir() if path.suffix == ".py"}
    assert names == {"shipped_pipeline.py", "own_loop.py", "new_architecture.py", "two_machines.py", "my_dit.py"}


@pytest.mark.processes
def test_a_shipped_pipeline(tmp_path: Path) -> None:
    assert run("shipped_pipeline.py", "made.png", folder=tmp_path) == "2 branches x 1 components, 20 calls\n"
    assert is_red_on_navy(tmp_path / "made.png")


@pytest.mark.processes
def test_a_loop_of_ones_own(tmp_path: Path) -> None:
    exact, ahead = run("own_loop.py", folder=tmp_path).splitlines()
    assert exact == "exact       30 of 30 calls exact, relative error 0.0e+00"
    found = re.fullmatch(r"look-ahead  (\d+) of 30 calls exact, relative error \S+", ahead)
    assert found is not None
    assert 2 <= int(found[1]) <= 6  # the warm-up, and what the guard adds
    assert float(ahead.split()[-1]) < 0.02


@pytest.mark.processes
def test_readmes_bring_your_own_as_it_is_written(tmp_path: Path) -> None:
    readme = (EXAMPLES.parent / "README.md").read_text()
    blocks = re.findall(r"<!-- bring your own: (\S+) -->\n```python\n(.*?)```", readme, re.DOTALL)
    assert [name for name, _ in blocks] == ["plan_mine.py", "run_mine.py"]
    shutil.copy(EXAMPLES / "my_dit.py", tmp_path)
    done = []
    for name, text in blocks:
        (tmp_path / name).write_text(text)
        done.append(
            subprocess.run(
                [sys.executable, name],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
                capture_output=True,
                text=True,
                timeout=300,
            )
        )
        assert done[-1].returncode == 0, done[-1].stderr
    planned, ran = done
    assert "guessed from 2 calls: latent: x; timestep: t; prompt: text\n" in planned.stderr
    assert ran.stdout == "exact: 0.0\n"


@pytest.mark.slow
def test_a_new_architecture(tmp_path: Path) -> None:
    first, second = run("new_architecture.py", folder=tmp_path).splitlines()
    assert first == "tiny-dit (TinyDiT): 2 branches x 2 components, lookahead"
    assert second.startswith("predicted ")


@pytest.mark.processes
def test_two_machines(tmp_path: Path) -> None:
    script = [str(EXAMPLES / "two_machines.py"), str(tmp_path / "made.png")]
    with agents(*script, logs=tmp_path, folders=(tmp_path, tmp_path), anew=True) as (first, second):
        out, err = first.communicate(timeout=300)
        assert (first.returncode, out) == (0, "2 ranks, 20 calls\n"), err
        out, err = second.communicate(timeout=300)
        assert (second.returncode, out) == (0, ""), err
    assert is_red_on_navy(tmp_path / "made.png")


def is_red_on_navy(file: Path) -> bool:
    """Whether a picture is mostly dark blue and has red pixels in its left half."""
    picture = Image.open(file).convert("RGB")
    width, height = picture.size
    pixels = [picture.getpixel((x, y)) for y in range(height) for x in range(width)]
    left = [picture.getpixel((x, y)) for y in range(height) for x in range(width // 2)]
    navy = sum(b > r + 30 and b > g + 30 for r, g, b in pixels)  # type: ignore[misc]
    red = sum(r > b + 60 and r > g + 60 for r, g, b in left)  # type: ignore[misc]
    return navy > len(pixels) / 2 and red > len(left) / 20
