"""partition-model in process, and where it matters as a process: results, exit codes, one sentence per error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from partitioner import cli
from partitioner._version import __version__
from partitioner.cli_options import plan_parser
from partitioner.models.find_spec import model_spec
from partitioner.models.spec import trace_model
from partitioner.plan.plan import Plan
from partitioner.planning import planner
from partitioner.planning.sampling_setup import SamplingSetup
from tests.support import warm
from tests.support.quality_rows import profile_of

REPOSITORY = Path(__file__).parents[2]
TRAINED = str(REPOSITORY / "tools" / "trained" / "unet")
CONFIG = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 16,
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a small model's configuration in ./unet-8."""
    (tmp_path / "unet-8").mkdir()
    (tmp_path / "unet-8" / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def split(run: Run) -> Run:
    """The command on the small model, whose transfers no fast link could hide."""

    def call(*arguments: str) -> tuple[int, str, str]:
        return run("--model", "unet-8", "--device", "cpu", "--height", "512", "--width", "512", *arguments)

    return call


def test_a_plan_is_made_and_described(split: Run, folder: Path) -> None:
    code, out, err = split("--devices", "4", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["plan"] == "unet-8-4.plan.json"
    plan = Plan.load(folder / document["plan"])
    spec = model_spec(str(folder / "unet-8"), height=512, width=512, dtype="float32")
    plan.check(trace_model(spec, rows=1))
    assert (document["branches"], document["components_per_branch"]) == (2, 2)
    assert document["fingerprint"] == plan.fingerprint
    assert document["devices"] == ["cpu"] * 4
    assert document["cost_source"] == "roofline cpu"
    assert document["speedup_step"] == pytest.approx(document["sequential_ms"] / document["step_ms"], rel=1e-4)
    assert document["steps"] == 50
    assert set(document["seconds"]) == {"trace", "cost", "solve", "total"}
    assert document["seconds"]["total"] >= document["seconds"]["trace"] > 0
    assert {"contiguous", "equal_parameters"} == set(document["baselines"])
    for baseline in document["baselines"].values():
        assert set(baseline) == {"step_ms", "bytes_per_step", "staleness"}
    assert [(c["branches"], c["components"], c["mode"]) for c in document["candidates"]] == [
        (1, 4, "lookahead"), (1, 4, "async"), (1, 3, "lookahead"), (1, 2, "lookahead"),
        (2, 2, "lookahead"), (2, 2, "async"), (2, 1, "lookahead"),
    ]  # fmt: skip
    chosen = [c for c in document["candidates"] if c["chosen"]]
    assert [(c["branches"], c["components"], c["mode"]) for c in chosen] == [(2, 2, "lookahead")]
    for key in ("step_ms", "staleness", "bytes_per_step"):
        assert chosen[0][key] == document[key]
    # the driver's rank also has slots for the inputs that it sends
    assert 0.99 < chosen[0]["memory_bytes"] / max(c["memory_bytes"] for c in document["components"]) <= 1


@pytest.mark.slow
def test_what_leaves_a_device_idle_is_told(split: Run, folder: Path) -> None:
    """Fewer steps were seen to beat four components, not three."""
    rows = [("lookahead", 4, 30.0, 3.4), ("lookahead", 3, 50.0, 2.6)]
    rows += [("fewer_steps", 1, 40.0, 2.0), ("fewer_steps", 1, 35.0, 4.0)]
    profile_of(rows).save(folder / "quality.json")
    options = ("--devices", "4", "--branches", "1", "--scheduler", "DDIMScheduler", "--quality", "quality.json")
    code, out, err = split(*options, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert (document["idle_devices"], document["components_per_branch"]) == (1, 3)
    margins = {(c["components"], c["mode"]): c["margin_db"] for c in document["candidates"]}
    assert margins[4, "lookahead"] < 0 < 6 < margins[3, "lookahead"]
    assert margins[4, "async"] is None
    code, out, err = split(*options, "--force")
    assert code == 0, err
    assert "1 left idle (--prefer speed uses them): with more, the output was less than 6 dB better than" in out
    code, out, err = split(*options, "--force", "--prefer", "speed")
    assert code == 0, err
    assert "left idle" not in out


def test_the_result_is_on_stdout_and_progress_on_stderr(split: Run) -> None:
    code, out, err = split("--devices", "2")
    assert code == 0
    assert out.startswith("unet-8 (UNet2DConditionModel) on 2 x cpu: 2 branches x 1 component")
    assert "estimate" in out
    assert "partition-model: tracing unet-8" in err
    assert "tracing" not in out


@pytest.mark.slow
def test_the_same_command_writes_the_same_file(split: Run, folder: Path) -> None:
    assert split("--devices", "2", "--output", "a.json")[0] == 0
    assert split("--devices", "2", "--output", "b.json")[0] == 0
    assert (folder / "a.json").read_bytes() == (folder / "b.json").read_bytes()


@pytest.mark.slow
def test_a_file_is_overwritten_only_with_force(split: Run, folder: Path) -> None:
    target = folder / "unet-8-2.plan.json"
    target.write_text("mine")
    code, out, err = split("--devices", "2")
    assert (code, out) == (2, "")
    assert "exists already" in err
    assert target.read_text() == "mine"
    assert split("--devices", "2", "--force")[0] == 0
    Plan.load(target)


@pytest.mark.slow
def test_inspect_shows_what_the_plan_says(split: Run, run: Run) -> None:
    made = json.loads(split("--devices", "4", "--json", "--output", "a.json")[1])
    code, out, err = run("inspect", "a.json", "--json")
    assert (code, err) == (0, "")
    shown = json.loads(out)
    assert shown == {name: made[name] for name in shown}
    assert run("inspect", "a.json")[1].startswith("unet-8 (UNet2DConditionModel)")


def test_a_name_brings_its_steps_sampler_and_guidance(folder: Path) -> None:
    def sampling(*arguments: str) -> SamplingSetup:
        parsed = plan_parser().parse_args(["--devices", "2", "--model", *arguments])
        (request,) = cli._requests(parsed, False).values()
        return request.sampling

    def setup(*fields: Any, asked: bool = False) -> SamplingSetup:
        return SamplingSetup(*fields, scale_is_default=not asked and fields[-1] is not None)

    flux, pixart = ("FlowMatchEulerDiscreteScheduler", "embedded", ""), "DPMSolverMultistepScheduler"
    assert sampling("flux") == setup(28, *flux, 3.5)
    assert sampling("flux", "--guidance-scale", "2") == setup(28, *flux, 2.0, asked=True)
    assert sampling("wan", "--steps", "10") == setup(10, "UniPCMultistepScheduler", "two-calls", "", 5.0)
    assert sampling("pixart", "--no-guidance") == setup(20, pixart, "none", "", 4.5)
    assert sampling("pixart", "--guidance-scale", "7") == setup(20, pixart, "batch", "", 7.0, asked=True)
    assert sampling("pixart", "--guidance-scale", "1") == setup(20, pixart, "none", "", 1.0, asked=True)
    assert sampling("pixart", "--guidance-scale", "1", "--guidance-style", "batch").scale_in_effect == 1.0
    assert sampling("unet-8") == setup(50, None, "batch", "", None)


def test_models_are_listed(run: Run) -> None:
    code, table, err = run("models")
    assert (code, err) == (0, "")
    assert run("--list-models") == (code, table, err)
    listed = json.loads(run("models", "--json")[1])["models"]
    assert {row["name"] for row in listed} >= {"svd", "flux2", "hunyuan-video-1.5"}
    assert run("--list-models", "--devices", "2")[0] == 2


def test_options_reach_the_plan(split: Run, folder: Path) -> None:
    code, shown, err = split(
        "--devices", "3", "--branches", "1", "--mode", "async", "--period", "2", "--warmup", "7", "--predictor",
        "linear", "--batch", "2", "--dtype", "float32", "--output", "a.json", "--guidance-scale", "5.5",
    )  # fmt: skip
    assert code == 0, err
    assert "quality judged at a guidance scale of 5.5" in shown
    plan = Plan.load(folder / "a.json")
    assert (plan.branches, plan.mode, plan.periods, plan.warmup) == (1, "async", (2, 2, 1), 7)
    assert (plan.predictor, plan.guidance_scale) == ("linear", 5.5)
    assert plan.inputs[0].shape == (4, 4, 64, 64)
    assert plan.inputs[0].dtype == "float32"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lookahead", "async"])
def test_a_proof_is_made_where_it_is_asked_for(split: Run, mode: str) -> None:
    pytest.importorskip("highspy")
    arguments = ("--devices", "2", "--branches", "1", "--mode", mode, "--prove", "--force")
    code, out, err = split(*arguments, "--json")
    assert code == 0, err
    assert "partition-model: proving" in err
    document = json.loads(out)
    proof = document["proof"]
    assert document["lower_bound_ms"] <= proof["bound_ms"] * (1 + 1e-5)
    assert proof["bound_ms"] <= document["step_ms"] * (1 + 1e-5)
    gap = document["step_ms"] / proof["bound_ms"] - 1
    assert proof["result"] == ("proved" if gap < 9e-5 else f"gap {gap:.2%}")
    _, text, _ = split(*arguments)
    assert f"proof            {proof['result']}: no placement of {proof['clusters']} clusters takes less than" in text


def test_a_proof_without_highs_is_a_usage_error(split: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highspy", None)
    code, out, err = split("--devices", "2", "--prove")
    assert (code, out) == (2, "")
    assert "pip install 'diffusion-partitioner[prove]'" in err


@pytest.mark.slow
def test_on_a_cpu_the_plan_is_for_float32_unless_told_otherwise(run: Run, folder: Path) -> None:
    """run-plan computes in float32 there, and by the data sheet float16 takes a hundred times as long."""
    took = {}
    for output, options in (("a.json", ()), ("b.json", ("--dtype", "float16"))):
        code, _, err = run("--model", TRAINED, "--devices", "cpu,cpu", "--output", output, *options)
        assert code == 0, err
        plan = Plan.load(folder / output)
        took[plan.inputs[0].dtype] = plan.predicted.sequential_ms
    assert 0.5 < took["float32"] < 2.5
    assert took["float16"] > 50 * took["float32"]


def test_the_version_is_the_projects(run: Run) -> None:
    assert run("--version") == (0, f"partition-model {__version__}\n", "")


def test_without_guidance_there_is_one_branch(split: Run, folder: Path) -> None:
    code, _, err = split("--devices", "2", "--no-guidance", "--output", "a.json")
    assert code == 0, err
    assert Plan.load(folder / "a.json").branches == 1


@pytest.mark.slow
def test_a_profile_is_measured_saved_and_used_again(run: Run, folder: Path) -> None:
    measured = ("--model", "unet-8", "--devices", "2", "--force", "--profile")
    code, out, err = run(*measured, "cpu", "--save-profile", "p.json", "--json", "--output", "a.json")
    assert code == 0, err
    assert json.loads(out)["cost_source"].startswith("measured ")
    assert "distinct operator calls on cpu" in err
    code, out, err = run(*measured, "p.json", "--output", "b.json", "--json")
    assert code == 0, err
    assert json.loads(out)["cost_covered"] == pytest.approx(1.0)
    assert (folder / "a.json").read_bytes() == (folder / "b.json").read_bytes()


USAGE = [
    (["--model", "unet-9", "--devices", "2"], "no model named 'unet-9'"),
    (["--model", "/none/model", "--devices", "2"], "no model named '/none/model'"),
    (["--model", "unet-8"], "required: --devices"),
    (["--devices", "2"], "required: --model"),
    (["--model", "unet-8", "--devices", "2", "--dev", "h200"], "unrecognized arguments"),
    (["--model", "unet-8", "--devices", "2", "--batch", "two"], "argument --batch: expected a whole number from 1 to"),
    (["--model", "unet-8", "--devices", "100000"], "expected 1 to 1024 devices"),
    (["--model", "unet-8", "--devices", "h200,z9"], "no device 'z9'"),
    (["--model", "unet-8", "--devices", "2", "--device", "z9"], "no device 'z9'"),
    (["--model", "unet-8", "--devices", "2", "--profile", "none.json"], "cannot be read"),
    (["--model", "unet-8", "--devices", "2", "--save-profile", "p.json", "--device", "h200"], "--profile"),
    (["--model", "unet-8", "--devices", "2", "--output", "none/plan.json"], "there is no folder none"),
    (["--model", "unet-8", "--devices", "2", "--output", "unet-8"], "is a folder"),
    (["--model", "unet-8", "--devices", "2", "--warmup", "0"], "--warmup: expected a whole number from 1 to 10000"),
    (["--model", "unet-8", "--devices", "2", "--memory-limit", "-1"], "argument --memory-limit: expected a number"),
    (["--model", "unet-8", "--devices", "2", "--height", "100"], "multiple of"),
    (["--model", "unet-8", "--devices", "2", "--frames", "8"], "no frames"),
    (["--model", "unet-8", "--devices", "1", "--branches", "2"], "2 branches need 2 devices"),
    (["--model", "unet-8", "--devices", "4", "--branches", "3"], "call of 2 rows; use --branches auto or 1, 2"),
    (["--model", "unet-8", "--devices", "4", "--branches", "two"], "--branches: expected a whole number from 1 to"),
    (["--model", "unet-8", "--devices", "4", "--branches", "0"], "--branches: expected a whole number from 1 to"),
    (["--model", "wan", "--devices", "2", "--guidance-style", "batch"], "calls of wan hold no two halves; its style"),
    (["--model", "flux", "--devices", "2", "--guidance-style", "none"], "takes the scale of guidance as an input of"),
    (["--model", "sd15", "--devices", "2", "--guidance-style", "cfg"], "invalid choice: 'cfg'"),
    (["--model", "sd15", "--devices", "2", "--no-guidance", "--guidance-style", "batch"], "contradict each other"),
    (["--model", "sd15", "--devices", "2", "--no-guidance", "--guidance-scale", "5"], "contradict each other"),
    (["--model", "sd15", "--devices", "2", "--guidance-style", "none", "--guidance-scale", "5"], "contradict each o"),
    (["--model", "sd15", "--devices", "2", "--guidance-scale", "nan"], "argument --guidance-scale: expected a number"),
    (["--model", "sd15", "--devices", "2", "--guidance-scale=-1"], "argument --guidance-scale: expected a number"),
    (["--model", "unet-8", "--devices", "2", "--branches", "2", "--no-guidance"], "one branch"),
    (["--model", "unet-8", "--devices", "2", "--period", "2", "--mode", "lookahead"], "look-ahead"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "expected"), USAGE)
def test_a_wrong_argument_is_one_sentence_and_exit_code_2(run: Run, arguments: list[str], expected: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert expected in err
    assert "Traceback" not in err
    assert len(_errors(err)) == 1


def test_an_invalid_plan_is_exit_code_3(run: Run, folder: Path) -> None:
    (folder / "bad.json").write_text('{"schema_version": 1}')
    for name, expected in (("bad.json", "model: Field required"), ("none.json", "cannot be read")):
        code, out, err = run("inspect", name)
        assert (code, out) == (3, "")
        assert expected in err
        assert len(_errors(err)) == 1


@pytest.mark.slow
def test_what_cannot_be_split_is_exit_code_4(split: Run, run: Run, tmp_path: Path) -> None:
    slow = tmp_path / "slow.json"  # links cost more than they win
    slow.write_text('{"devices": [{"name": "h200", "count": 2, "latency_us": 10000}]}')
    for code, out, err in (
        split("--devices", "2", "--memory-limit", "0.0001"),
        split("--devices", "900", "--branches", "1"),
        run("--model", "unet-8", "--devices", str(slow), "--no-guidance"),
    ):
        assert (code, out) == (4, "")
        assert len(_errors(err)) == 1


def _errors(err: str) -> list[str]:
    return [line for line in err.splitlines() if "error:" in line]


def test_ctrl_c_is_exit_code_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(planner, "plan", interrupt)
    code, out, err = run("--model", "unet-8", "--devices", "2", "--device", "h200")
    assert (code, out) == (130, "")
    assert err.endswith("interrupted\n")


def _process(*arguments: str, anew: bool, folder: Path) -> subprocess.Popen[str]:
    """partition-model in a folder, as a process that is started anew, or forked."""
    command = ["-m", "partitioner.cli", *arguments]
    options: dict[str, Any] = {
        "env": {**os.environ, "PYTHONPATH": str(REPOSITORY)}, "cwd": folder,
        "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
    }  # fmt: skip
    if anew:
        return subprocess.Popen([sys.executable, *command], text=True, **options)
    return warm.start(command, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "word", "anew"),
    [(signal.SIGINT, 130, "interrupted", True), (signal.SIGTERM, 143, "terminated", False)],
)
def test_a_process_that_is_stopped_again_and_again_leaves_no_file(
    folder: Path, number: signal.Signals, status: int, word: str, anew: bool
) -> None:
    process = _process("--model", "unet-8", "--devices", "2", "--device", "cpu", anew=anew, folder=folder)
    assert process.stderr is not None
    assert "tracing" in process.stderr.readline()
    time.sleep(0.2)
    while process.poll() is None:
        process.send_signal(number)
        time.sleep(0.005)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err.splitlines()[-1:]) == (status, [f"partition-model: {word}"]), err
    assert err.count(word) == 1
    assert "Traceback" not in err
    assert [path.name for path in folder.iterdir()] == ["unet-8"]


def test_help_and_usage_errors_need_no_torch() -> None:
    script = (
        "import sys\nfrom partitioner.cli import main\n"
        "assert main(['--help']) == 0\n"
        "assert main(['models']) == 0\n"
        "assert main(['--model', 'sd15', '--devices', '0']) == 2\n"
        "assert 'torch' not in sys.modules and 'diffusers' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "exit codes: 0 done, 1 not foreseen, 2 usage, 3 invalid plan, 4 no feasible split" in done.stdout


@pytest.mark.slow
def test_a_reader_that_leaves_early_is_no_error(split: Run, folder: Path) -> None:
    assert split("--devices", "2", "--output", "a.json")[0] == 0
    with _process("inspect", "a.json", anew=False, folder=folder) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 0
