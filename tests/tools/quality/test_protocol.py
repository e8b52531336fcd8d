"""tools.quality.protocol: a data set's pictures with and without the engine, made once and measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from partitioner.costs.model import CostModel
from partitioner.models.find_spec import model_spec
from partitioner.planning.options import PlanOptions
from partitioner.planning.planner import plan
from partitioner.planning.request import PlanRequest
from partitioner.planning.sources import FromSpec
from tests.support.pipelines import saved
from tools.quality.protocol import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("stable_diffusion", tmp_path_factory.mktemp("pipelines"))


@pytest.mark.slow
def test_pictures_are_made_once_and_measured(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = PlanOptions(branches=1, mode="lookahead", force=True, warmup=2)
    source = FromSpec(model_spec(str(folder)))
    plan(PlanRequest(source, 2, CostModel("cpu"), options)).plan.save(tmp_path / "plan.json")
    (tmp_path / "prompts.txt").write_text("a red cat\na blue dog\n")
    given = ["--pipeline", str(folder), "--plan", str(tmp_path / "plan.json"), "--out", str(tmp_path / "out")]
    given += ["--prompts", str(tmp_path / "prompts.txt"), "--steps", "6", "--height", "16", "--width", "16"]
    given += ["--transport", "emulation", "--json"]
    assert main(given) == 0
    whole, engine, fewer = json.loads(capsys.readouterr().out)["rows"]
    assert [row["run"] for row in (whole, engine, fewer)] == ["sequential", "engine", "fewer_steps"]
    assert whole["psnr_db"] is None
    assert 20 < fewer["psnr_db"] < engine["psnr_db"] < 100
    assert json.loads((tmp_path / "out" / "results.json").read_text())["rows"] == [whole, engine, fewer]

    picture = tmp_path / "out" / "sequential" / "00001-1.png"
    before = picture.read_bytes()
    picture.unlink()
    others = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*/*.png")}
    assert main([*given, "--runs", "sequential"]) == 0
    out, err = capsys.readouterr()
    assert [line for line in err.splitlines() if "pictures" in line and "1 of 1" in line], "only what was missing"
    assert picture.read_bytes() == before
    assert {file: file.stat().st_mtime_ns for file in others} == others
    assert json.loads(out)["rows"] == [whole]

    assert main([*given, "--steps", "5"]) == 2
    assert "made with steps 6, not 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--metrics", "psnr,ssim"], "--metrics ssim: expected some of psnr, lpips"),
        (["--runs", "engine"], "--runs has no sequential"),
        (["--seeds", "0"], "--seeds is 0"),
        (["--plan", "nowhere.json"], "--plan nowhere.json is not there"),
        (["--images", "."], "the prompts name no pictures"),
        (["--metrics", "clip", "--weights", "."], "hf download openai/clip-vit-large-patch14"),
    ],
)
def test_what_cannot_be_done_is_refused_before_a_picture_is_made(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a red cat\n")
    Image.new("RGB", (4, 4)).save(tmp_path / "cat.png")
    given = ["--pipeline", ".", "--plan", "prompts.txt", "--prompts", "prompts.txt", "--out", "out"]
    assert main([*given, *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
