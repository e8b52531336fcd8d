"""Ranks that torchrun has started on two machines compute the bits of the engine's own ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime.cli import main
from tests.support.run_plan_home import Home
from tests.support.two_agents import agents

pytestmark = pytest.mark.usefixtures("trace_once")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


@pytest.mark.processes
@pytest.mark.parametrize("files", ["on every machine", "on the driver's"])
def test_two_machines_give_the_bytes_of_the_engines_own_launch(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str], files: str
) -> None:
    name = "stable_diffusion"
    arguments = ["--prompt", "a red cat", "--height", "32", "--width", "32", "--steps", "3", "--json"]
    own, theirs = tmp_path / "own.png", tmp_path / "theirs.png"
    assert main([str(home.plan(name)), "--pipeline", str(home.pipeline(name)), *arguments, "--output", str(own)]) == 0
    wanted = json.loads(capsys.readouterr().out)
    everywhere = files == "on every machine"
    pipeline = home.pipeline(name) if everywhere else home.pipeline(name).relative_to(home.folder)
    command = ["-m", "runtime.cli", str(home.plan(name)), "--pipeline", str(pipeline), *arguments]
    with agents(*command, "--output", str(theirs), logs=tmp_path, folders=(home.folder, tmp_path)) as (first, second):
        out, err = first.communicate(timeout=300)
        assert first.returncode == 0, err
        no_out, err = second.communicate(timeout=300)
        assert (second.returncode, no_out) == (0, ""), err
    assert theirs.read_bytes() == own.read_bytes()
    got = json.loads(out)
    assert [row["parameter_bytes"] for row in got["per_rank"]] == [row["parameter_bytes"] for row in wanted["per_rank"]]
    more = got["per_rank"][0]["sent_bytes"] - wanted["per_rank"][0]["sent_bytes"]
    if everywhere:
        assert more == 0, "the rank has read its parameters itself"
    else:
        size_bytes = got["per_rank"][1]["parameter_bytes"]
        assert 0.99 * size_bytes < more <= size_bytes, "they were sent, but for what no file holds, which always is"
