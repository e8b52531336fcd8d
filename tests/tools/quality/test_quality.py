"""tools.quality: rows of the engine beside the sequential output and fewer steps."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from partitioner.costs.model import CostModel
from partitioner.models.find_spec import model_spec
from partitioner.plan.plan import Plan
from partitioner.planning.options import PlanOptions
from partitioner.planning.planner import plan
from partitioner.planning.request import PlanRequest
from partitioner.planning.sources import FromSpec
from profiles.measured_figure import MeasuredFigure, QualityCase, expected_figure, fewer_steps_figure
from profiles.quality_profile import SHIPPED, QualityProfile
from runtime import parallelize
from runtime.options import EngineOptions
from tests.support.pipelines import saved
from tools.pictures.pipelines import HELD_OUT
from tools.quality.__main__ import main
from tools.quality.engine_config import parse_config
from tools.quality.measured_pipeline import shipped_pipeline
from tools.quality.samplers import SamplingCase
from tools.trace_once import traced_once

pytestmark = pytest.mark.usefixtures("trace_once")

KEYS = {
    "devices", "branches", "components", "period", "split", "predictor", "scheduler", "steps", "warmup", "samples",
    "psnr_db", "ssim", "agreement", "frechet", "frechet_noise", "speedup", "speedup_source",
    "guidance_scale", "scheduler_config", "floor_float16_db", "floor_bfloat16_db",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_lpips(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it is not installed: it would load weights from elsewhere."""
    monkeypatch.setitem(sys.modules, "lpips", None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("stable_diffusion", tmp_path_factory.mktemp("pipelines"))


def plan_with(profile: QualityProfile | None, folder: Path) -> Plan:
    """The plan of a folder's denoiser in async mode, with what a profile holds."""
    options = PlanOptions(branches=1, mode="async", force=True)
    source = FromSpec(model_spec(str(folder)))
    return plan(PlanRequest(source, 2, CostModel("cpu"), options, quality=profile)).plan


def _db(figure: MeasuredFigure | None) -> float | None:
    return figure and figure.psnr_db


@pytest.mark.slow
def test_rows_of_a_users_pipeline(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--pipeline", str(folder), "--prompt", "a red cat", "--samples", "2", "--steps", "8", "--json"]
    options += ["--scheduler", "ddim", "--ways", "2:2,2:1:chain:hold,2:1:chain", "--threads", "1"]
    files = ["--picture", str(tmp_path / "samples.png"), "--calibrate", str(tmp_path / "quality.json")]
    assert main([*options, *files]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"environment", "command", "denoiser", "rows"}
    assert all(set(row) >= KEYS for row in document["rows"])
    by_name = {row["predictor"]: row for row in document["rows"]}
    assert list(by_name) == ["sequential", "exact", "hold", "lookahead", "fewer_steps"]
    assert by_name["sequential"]["psnr_db"] == 100.0
    assert by_name["exact"]["psnr_db"] > 90
    assert {row["floor_float16_db"] for row in document["rows"]} == {by_name["exact"]["floor_float16_db"]}
    assert 20 < by_name["exact"]["floor_bfloat16_db"] < by_name["exact"]["floor_float16_db"] < 90
    assert by_name["lookahead"]["psnr_db"] > by_name["fewer_steps"]["psnr_db"]
    assert 1 < by_name["hold"]["speedup"] < 2
    assert (tmp_path / "samples.png").stat().st_size > 0
    measured = QualityProfile.load(tmp_path / "quality.json")
    for name, scheduler in (("hold", "DDIMScheduler"), ("lookahead", None)):
        found = expected_figure(measured.rows, 2, name, QualityCase(8, scheduler, guidance_scale=7.5))
        assert found is not None
        assert (found.psnr_db, found.between) == (by_name[name]["psnr_db"], (7.5,)), "the pipeline's default"
    shares = {row.predictor: row.exact_share for row in measured.rows}
    assert shares == {"hold": None, "lookahead": by_name["lookahead"]["exact_calls"] / 8, "fewer_steps": None}
    assert plan_with(measured, folder).predicted.staleness != plan_with(None, folder).predicted.staleness
    fewer = by_name["fewer_steps"]
    assert _db(fewer_steps_figure(measured.rows, fewer["speedup"], QualityCase(8))) == fewer["psnr_db"]


@pytest.mark.slow
def test_a_flow_sampler_is_for_denoisers_that_predict_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--prompt", "a red cat", "--samples", "1", "--steps", "8", "--ways", "1"]
    assert main(["--pipeline", str(folder), *options, "--scheduler", "flow"]) == 2
    assert "predicts no flow" in capsys.readouterr().err
    assert main(["--denoiser", "mmdit", "--samples", "1", "--ways", "1", "--scheduler", "ddim"]) == 2
    assert "predicts a flow" in capsys.readouterr().err


@pytest.mark.slow
def test_fewer_steps_of_a_sampler_of_two_calls_are_counted_by_calls(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--pipeline", str(folder), "--prompt", "a red cat", "--samples", "1", "--steps", "10", "--json"]
    options += ["--scheduler", "heun", "--ways", "2:1:chain", "--threads", "1"]
    assert main([*options, "--calibrate", str(tmp_path / "quality.json")]) == 0
    _, ahead, fewer = json.loads(capsys.readouterr().out)["rows"]
    assert ahead["predictor"] == "lookahead"
    assert fewer["speedup"] == pytest.approx(19 / (2 * fewer["steps"] - 1), abs=1e-3)
    assert fewer["speedup"] == pytest.approx(ahead["speedup"], rel=0.15)
    measured = QualityProfile.load(tmp_path / "quality.json")
    case = QualityCase(10, "HeunDiscreteScheduler")
    assert _db(fewer_steps_figure(measured.rows, fewer["speedup"], case)) == fewer["psnr_db"]


def test_a_plot_without_its_library_is_refused_before_anything_is_measured(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr("tools.quality.__main__.users_pipeline", None)  # so that to go on would be another error
    assert main(["--pipeline", str(folder), "--prompt", "a red cat", "--plot", str(tmp_path / "plot.png")]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--samples", "0"], ["--noise-floor", "-1"], ["--ways", "many"], []])
def test_bad_options_are_refused(options: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--pipeline", str(folder), *options]) == 2
    assert "tools.quality:" in capsys.readouterr().err


@pytest.mark.parametrize("kind", HELD_OUT)
def test_the_shipped_profile_is_not_told_of_held_out_denoisers(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = SHIPPED.read_bytes()
    assert main(["--denoiser", kind, "--samples", "1", "--calibrate", str(SHIPPED)]) == 2
    assert f"nothing of {kind}: it is held out" in capsys.readouterr().err
    assert SHIPPED.read_bytes() == before


@pytest.mark.slow
def test_held_out_denoisers_are_measured_and_calibrate_a_file_of_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = "linear-dit"
    options = ["--samples", "2", "--chunk", "2", "--steps", "8", "--ways", "2:2,2:1:chain", "--threads", "1", "--json"]
    assert main(["--denoiser", kind, *options, "--calibrate", str(tmp_path / "quality.json")]) == 0
    by_name = {row["predictor"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert by_name["exact"]["psnr_db"] > 90
    assert by_name["lookahead"]["components"] == 2
    assert {row.denoiser for row in QualityProfile.load(tmp_path / "quality.json").rows} == {kind}


@pytest.mark.slow
@traced_once(plans=True)
def test_guidance_in_two_calls_has_the_figures_of_one_stream_after_the_other() -> None:
    pipeline = shipped_pipeline("mmdit", 2, 2, None, two_calls=True)
    pipeline.use(SamplingCase(None, 8))
    in_one_call = shipped_pipeline("mmdit", 2, 2, None)
    assert torch.allclose(pipeline.generate(8), in_one_call.generate(8), atol=1e-4)
    one, _ = pipeline.plan(parse_config("2:1:chain"))
    two = one.model_copy(
        update={
            "branches": 2, "streams": 2, "devices": one.devices * 2,
            "predicted": one.predicted.model_copy(update={"components": one.predicted.components * 2}),
        }
    )  # fmt: skip
    assert (one.components, two.ranks) == (2, 4)
    for mode in ("lookahead", "async"):
        made = []
        for run in (one, two):
            options = EngineOptions(transport="emulation", mode=mode, warmup=2, keep_weights=True)
            with parallelize(pipeline.pipe, run, options) as engine:
                made.append(pipeline.generate(8))
                stats = engine.stats
        assert torch.equal(*made)
        assert (stats.foreseen_calls, stats.wasted_calls) == (7, 0)
        assert stats.mode == mode


def test_two_calls_are_for_what_calls_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--denoiser", "unet", "--two-calls", "--samples", "1"]) == 2
    assert main(["--pipeline", "nowhere", "--prompt", "a", "--two-calls"]) == 2
    assert capsys.readouterr().err.count("--two-calls is for") == 2
