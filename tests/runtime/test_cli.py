"""run-plan: files, tables, JSON, refusals and exit codes."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import partitioner.cli
from partitioner.models.find_spec import model_spec
from runtime import generation
from runtime.cli import main
from runtime.ranks.launch import Launched, LocalLauncher
from tests.support import pipelines, undescribed_pipelines
from tests.support.plans import plan_simply
from tests.support.run_plan_home import Home
from tests.support.single_file import save_single_file
from tests.support.traces import rank_processes
from tools.pictures.pipelines import TRAINED

pytestmark = pytest.mark.usefixtures("trace_once")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(home: Home, capsys: pytest.CaptureFixture[str]) -> Run:
    """(exit code, stdout, stderr) of run-plan in this process."""

    def run(name: str, *more: str, plan: Path | None = None, pipeline: str | None = None) -> tuple[int, str, str]:
        size = ["--height", "32", "--width", "32", "--steps", "3"]
        folder = pipeline or str(home.pipeline(name))
        capsys.readouterr()
        code = main([str(plan or home.plan(name)), "--pipeline", folder, *size, *more])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


# ---- results


@pytest.mark.processes
def test_an_image_is_written_and_described(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "cat.png"
    code, out, err = run("stable_diffusion", "--prompt", "a red cat", "--output", str(output))
    assert code == 0, err
    with Image.open(output) as image:
        assert image.size == (32, 32)
    assert out.startswith(f"wrote {output} in ")
    rows = [line.split() for line in out.splitlines()]
    assert rows[1] == ["mode", "steps", "ms", "per", "step"]
    assert [row[:2] for row in rows[2:4]] == [["exact", "2"], ["async", "1"]]
    assert rows[4] == ["exact", "because", "of:", "warm-up", "(2)"]
    assert rows[5][:3] == ["rank", "sent", "MB"]
    assert "run-plan: 2 ranks ready" in err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unet", "mmdit"])  # of noise and of flow
def test_the_shipped_denoisers_draw_what_is_asked_for(kind: str, run: Run, tmp_path: Path) -> None:
    """They are saved in float16, which a CPU is not to compute in."""
    folder = TRAINED / kind
    spec = model_spec(str(folder), dtype="float32")
    plan_simply(spec, 2, branches=1, mode="lookahead").plan.save(tmp_path / "two.plan.json")
    output = tmp_path / "shape.png"
    arguments = ["--prompt", "a yellow circle on black middle", "--transport", "emulation", "--guidance-scale", "3"]
    arguments += ["--steps", "20", "--output", str(output)]
    code, out, err = run(kind, *arguments, plan=tmp_path / "two.plan.json", pipeline=str(folder))
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()[2:4]] == ["exact", "look-ahead"]
    assert "async" not in out
    with Image.open(output) as image:
        assert image.size == (32, 32)
        red, green, blue = image.getpixel((16, 16))
    assert min(red, green) > blue + 40  # yellow


@pytest.mark.processes
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")  # of a picture that is all NaN
def test_check_finite_names_step_component_and_node(run: Run, home: Home, tmp_path: Path) -> None:
    """Fault 10. Unasked, the same weights make a picture."""
    broken = tmp_path / "broken"
    shutil.copytree(home.pipeline("stable_diffusion"), broken)
    (weights,) = (broken / "unet").glob("*.safetensors")
    tensors = load_file(weights)
    tensors["mid_block.resnets.0.conv1.weight"].fill_(float("nan"))
    save_file(tensors, weights, metadata={"format": "pt"})
    arguments = ["--prompt", "a red cat", "--output", str(tmp_path / "cat.png")]
    code, out, err = run("stable_diffusion", *arguments, "--check-finite", pipeline=str(broken))
    assert (code, out) == (5, "")
    assert re.search(r"rank \d \(component \d\), step 0: .*mid_block\.resnets\.0\.conv1", err)
    assert list(tmp_path.iterdir()) == [broken]
    code, _, err = run("stable_diffusion", *arguments, pipeline=str(broken))
    assert code == 0, err


@pytest.mark.processes
def test_a_step_may_take_as_long_as_was_asked_for(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = generation.generate

    def generate(pipe: Any, options: Any) -> Any:
        step = pipe.scheduler.step

        def stopping(*given: Any, **named: Any) -> Any:
            os.kill(rank_processes()[0], signal.SIGSTOP)
            return step(*given, **named)

        pipe.scheduler.step = stopping
        return before(pipe, options)

    monkeypatch.setattr(generation, "generate", generate)
    output = str(tmp_path / "cat.png")
    code, out, err = run("stable_diffusion", "--prompt", "a red cat", "--output", output, "--step-timeout", "0.001")
    assert (code, out) == (5, "")
    assert re.search(r"rank \d .*(step \d|first step).* 0\.001 s", err)


@pytest.mark.processes
def test_a_start_may_take_as_long_as_was_asked_for(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = LocalLauncher.begin

    def begin(*given: Any) -> Launched:
        launched = before(*given)
        os.kill(int(str(launched.process)), signal.SIGSTOP)
        return launched

    monkeypatch.setattr(LocalLauncher, "begin", begin)
    output = str(tmp_path / "cat.png")
    code, out, err = run("stable_diffusion", "--prompt", "a red cat", "--output", output, "--startup-timeout", "0.001")
    assert (code, out) == (5, "")
    assert re.search(r"within 0\.001 s.*--startup-timeout", err)


@pytest.mark.slow
def test_a_trace_is_written_and_not_over_another_file(run: Run, tmp_path: Path) -> None:
    trace = tmp_path / "run.pt.trace.json"
    arguments = ["--prompt", "a red cat", "--transport", "threads", "--trace", str(trace)]
    code, _, err = run("stable_diffusion", *arguments, "--output", str(tmp_path / "cat.png"))
    assert code == 0, err
    events = json.loads(trace.read_text())["traceEvents"]
    assert {event["pid"] for event in events} == {0, 1}
    assert sum(event["name"].startswith("ProfilerStep#") for event in events) == 3
    code, out, err = run("stable_diffusion", *arguments, "--output", str(tmp_path / "dog.png"))
    assert (code, out) == (2, "")
    assert "run.pt.trace.json exists" in err
    assert not (tmp_path / "dog.png").exists()


def test_exact_is_the_unmodified_pipeline_and_json_is_all_of_stdout(run: Run, home: Home, tmp_path: Path) -> None:
    output = tmp_path / "cat.png"
    arguments = ["--prompt", "a red cat", "--seed", "3", "--output", str(output), "--transport", "emulation"]
    code, out, _ = run("stable_diffusion", *arguments, "--exact", "--json")
    assert code == 0
    result = json.loads(out)
    assert (result["output"], result["ranks"], result["steps"], result["exact_steps"]) == (str(output), 2, 3, 3)
    assert result["exact_ms_per_step"] > 0
    assert (result["mode"], result["lookahead_steps"], result["async_steps"]) == ("exact", 0, 0)
    assert result["lookahead_ms_per_step"] is None
    assert result["async_ms_per_step"] is None
    assert (result["exact_reasons"], result["uncovered_calls"]) == ({"exact mode": 3}, {})
    assert (result["foreseen_calls"], result["wasted_calls"]) == (0, 0)
    assert [row["rank"] for row in result["per_rank"]] == [0, 1]
    assert all(row["parameter_bytes"] > 0 and row["sent_bytes"] > 0 for row in result["per_rank"])
    own = pipelines.call(
        pipelines.load(home.pipeline("stable_diffusion")), steps=3, seed=3, height=32, width=32, output_type="pil"
    )
    with Image.open(output) as image:
        assert image.tobytes() == own[0].tobytes()


@pytest.mark.parametrize("warmup", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_warm_up_and_predictor_may_differ_from_the_plans(run: Run, tmp_path: Path, warmup: int) -> None:
    arguments = ["--prompt", "a", "--warmup", str(warmup), "--predictor", "linear", "--transport", "emulation"]
    code, out, _ = run("stable_diffusion", *arguments, "--json", "--output", str(tmp_path / "a.png"))
    assert code == 0
    assert json.loads(out)["exact_steps"] == warmup


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stable_video_diffusion", "animatediff"])
def test_a_video_is_written_with_all_its_frames(run: Run, home: Home, tmp_path: Path, name: str) -> None:
    what = ["--image", str(home.image())] if name == "stable_video_diffusion" else ["--prompt", "a red cat"]
    output = tmp_path / "cat.gif"
    code, _, err = run(name, *what, "--frames", "2", "--transport", "emulation", "--output", str(output))
    assert code == 0, err
    with Image.open(output) as video:
        assert (video.size, video.n_frames) == ((32, 32), 2)


@pytest.mark.slow
def test_a_pipeline_that_no_description_knows_is_planned_and_run_from_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = undescribed_pipelines.made("aura_flow", tmp_path)
    pipe.save_pretrained(tmp_path / "saved")
    size, plan, output = ["--height", "32", "--width", "32"], str(tmp_path / "a.plan.json"), str(tmp_path / "a.png")
    arguments = ["--model", str(tmp_path / "saved"), "--devices", "2", "--branches", "1", "--dtype", "float32", *size]
    assert partitioner.cli.main([*arguments, "--force", "--output", plan]) == 0
    command = [plan, "--pipeline", str(tmp_path / "saved"), "--prompt", "a red cat", "--seed", "3", "--steps", "3"]
    assert main([*command, *size, "--exact", "--transport", "emulation", "--output", output]) == 0
    assert "warning" not in capsys.readouterr().err.lower()
    own = pipelines.call(pipe, steps=3, seed=3, height=32, width=32, output_type="pil")
    with Image.open(output) as image:
        assert image.tobytes() == own[0].tobytes()


@pytest.mark.slow
def test_force_overwrites(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "a.png"
    output.write_text("precious")
    arguments = ["--prompt", "a", "--transport", "emulation", "--output", str(output)]
    assert run("stable_diffusion", *arguments)[0] == 2
    assert output.read_text() == "precious"
    assert run("stable_diffusion", *arguments, "--force")[0] == 0
    with Image.open(output) as image:
        assert image.size == (32, 32)


# ---- refusals: one sentence on stderr, nothing on stdout, no file


def refused(result: tuple[int, str, str], code: int) -> str:
    got, out, err = result
    assert (got, out) == (code, ""), err
    lines = [line for line in err.splitlines() if line.startswith("run-plan: ") and "ranks ready" not in line]
    assert len(lines) == 1
    assert err.rstrip().endswith(lines[0]), "the sentence is the last thing said"
    return lines[0].removeprefix("run-plan: error: ")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--output", "{tmp}/a.txt"], "a.txt: expected one of .png"),
        (["--output", "{tmp}/none/a.png"], "there is no folder {tmp}/none; make it or choose another --output"),
        (
            ["--output", "{tmp}/a.png", "--steps", "0"],
            "--steps: expected a whole number from 1 to 10000, got '0'",
        ),
        (["--output", "{tmp}/a.png", "--warmup", "0"], "argument --warmup: expected a whole number from 1 to"),
        (["--output", "{tmp}/a.png", "--threads", "1000000"], "--threads: expected a whole number from 1 to 1024"),
        (["--output", "{tmp}/a.png", "--seed", str(10**30)], "to 18446744073709551615, got"),
        (["--output", "{tmp}/a.png", "--height", str(10**9)], "--height: expected a whole number from 1 to 65536"),
        (["--output", "{tmp}/a.png", "--step-timeout", "inf"], "--step-timeout: expected a number from 1e-06 to 1"),
        (["--output", "{tmp}/a.png", "--startup-timeout", "nan"], "--startup-timeout: expected a number from 1e-06"),
        (["--output", "{tmp}/a.png", "--step-timeout", "-1"], "--step-timeout: expected a number from 1e-06 to"),
        (["--output", "{tmp}/a.png", "--image", "{tmp}/no.png"], "--image {tmp}/no.png is no file"),
        (["--output", "{tmp}/a.png"], "a StableDiffusionPipeline needs --prompt"),
        (["--output", "{tmp}/a.png", "--prompt", "a", "--frames", "2"], "a StableDiffusionPipeline takes no --frames"),
        (["--output", "{tmp}/a.png", "--prompt", "a", "--height", "33"], "refuses this call: `height` and `width`"),
        (
            ["--output", "{tmp}/a.png", "--prompt", "a", "--devices", "cpu,nowhere"],
            "--devices has 'nowhere'; expected cpu or",
        ),
    ],
)
def test_usage_that_cannot_work_is_refused(run: Run, tmp_path: Path, more: list[str], message: str) -> None:
    more = [part.replace("{tmp}", str(tmp_path)) for part in more]
    sentence = refused(run("stable_diffusion", "--transport", "emulation", *more), 2)
    assert message.replace("{tmp}", str(tmp_path)) in sentence
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_image_that_is_none_is_refused(run: Run, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("no image")
    arguments = ["--image", str(text), "--frames", "2", "--transport", "emulation", "--output", str(tmp_path / "a.gif")]
    assert "cannot be read as an image" in refused(run("stable_video_diffusion", *arguments), 2)


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        ("{tmp}/missing", "is neither a folder nor a file nor a hub id"),
        ("{tmp}", "has no model_index.json: expected a saved diffusers pipeline"),
        ("nobody/nothing", "nobody/nothing cannot be loaded"),
    ],
)
def test_a_pipeline_that_is_not_there_is_refused(run: Run, tmp_path: Path, pipeline: str, message: str) -> None:
    folder = pipeline.replace("{tmp}", str(tmp_path))
    result = run("stable_diffusion", "--prompt", "a", "--output", str(tmp_path / "a.png"), pipeline=folder)
    assert message in refused(result, 2)


def test_a_modular_pipeline_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "modular_model_index.json").write_text("{}")
    arguments = ["--prompt", "a", "--output", str(tmp_path / "a.png")]
    told = refused(run("stable_diffusion", *arguments, pipeline=str(tmp_path)), 2)
    assert "holds a modular pipeline" in told
    assert "runtime.parallelize(pipe, devices=N)" in told


@pytest.mark.parametrize(("index", "message"), [("[]", "holds no JSON object"), ("{", "cannot be loaded")])
def test_a_broken_index_of_a_pipeline_is_refused(run: Run, tmp_path: Path, index: str, message: str) -> None:
    (tmp_path / "model_index.json").write_text(index)
    arguments = ["--prompt", "a", "--output", str(tmp_path / "a.png")]
    assert message in refused(run("stable_diffusion", *arguments, pipeline=str(tmp_path)), 2)


def test_a_model_alone_is_refused(run: Run, home: Home, tmp_path: Path) -> None:
    arguments = ["--prompt", "a", "--output", str(tmp_path / "a.png")]
    result = run("stable_diffusion", *arguments, pipeline=str(home.pipeline("stable_diffusion") / "unet"))
    assert "only a model's config.json: expected a saved diffusers pipeline" in refused(result, 2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument:UserWarning")  # diffusers' own call
def test_a_variant_or_configuration_that_is_needed_is_named_and_works(run: Run, home: Home, tmp_path: Path) -> None:
    plain = pipelines.load(home.pipeline("stable_diffusion"))
    plain.save_pretrained(tmp_path / "half", variant="fp16", max_shard_size="50KB")
    save_single_file(plain, tmp_path / "one.safetensors")
    arguments = ["--prompt", "a", "--steps", "2", "--exact", "--transport", "emulation"]
    made = [str(tmp_path / f"{name}.png") for name in ("plain", "half", "one")]
    assert run("stable_diffusion", *arguments, "--output", made[0])[0] == 0
    half = [*arguments, "--output", made[1]]
    assert refused(run("stable_diffusion", *half, pipeline=str(tmp_path / "half")), 2).endswith("as --variant fp16")
    assert run("stable_diffusion", *half, "--variant", "fp16", pipeline=str(tmp_path / "half"))[0] == 0
    one = [*arguments, "--output", made[2]]
    assert "--config FOLDER" in refused(run("stable_diffusion", *one, pipeline=str(tmp_path / "one.safetensors")), 2)
    config = ["--config", str(home.pipeline("stable_diffusion"))]
    assert run("stable_diffusion", *one, *config, pipeline=str(tmp_path / "one.safetensors"))[0] == 0
    assert Path(made[0]).read_bytes() == Path(made[1]).read_bytes() == Path(made[2]).read_bytes()


def test_a_missing_or_broken_plan_is_refused(run: Run, tmp_path: Path) -> None:
    broken = tmp_path / "broken.plan.json"
    broken.write_text('{"schema_version": 1}')
    for plan in (tmp_path / "missing.plan.json", broken):
        result = run("stable_diffusion", "--prompt", "a", "--output", str(tmp_path / "a.png"), plan=plan)
        assert plan.name in refused(result, 3)


@pytest.mark.slow
def test_the_command_that_a_refused_plan_advises_makes_one_that_fits(
    run: Run, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--prompt", "a", "--steps", "2", "--transport", "emulation", "--output", str(tmp_path / "a.png")]
    sentence = refused(run("stable_diffusion", *arguments, plan=home.plan("animatediff")), 3)
    assert "made for" in sentence
    advised = shlex.split(sentence.rpartition(". This makes one: ")[2])
    monkeypatch.chdir(tmp_path)
    assert advised[0] == "partition-model"
    assert partitioner.cli.main(advised[1:]) == 0
    capsys.readouterr()
    (made,) = tmp_path.glob("*.plan.json")
    assert run("stable_diffusion", *arguments, plan=made)[0] == 0


def test_a_wrong_number_of_devices_is_refused(run: Run, tmp_path: Path) -> None:
    arguments = ["--prompt", "a", "--devices", "cpu,cpu,cpu", "--output", str(tmp_path / "a.png")]
    sentence = refused(run("stable_diffusion", *arguments), 3)
    assert "needs 2 devices" in sentence
    assert "got 3: cpu, cpu, cpu; make a plan with --devices 3" in sentence


def test_a_missing_option_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["a.plan.json"]) == 2
    assert "--pipeline, --output" in capsys.readouterr().err
