"""Cases: a mutated file, or a folder with one, and the command that it is given to; all follow from a seed."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import nn

from partitioner.cli import main as partition_model
from partitioner.costs.signature import signature
from partitioner.graph.export import trace
from partitioner.models.spec import model_spec, trace_model
from partitioner.planning.options import PlanOptions
from profiles.cost_profile import CostProfile, SignatureCost, WholeCheck
from profiles.quality_profile import MeasuredDrift, QualityProfile
from runtime.cli import main as run_plan
from runtime.pipeline import plan_for
from tools.mutate.documents import mutated_json
from tools.mutate.folders import mutate_folder, mutate_weights
from tools.mutate.forked import Limits, RunEnd, run_forked
from tools.small_pipelines import load, saved

_SIDE = 32  # pixels
_PROMPT = "a red cat"
Main = Callable[[Sequence[str]], int]
PIPELINES = ("stable_diffusion", "flux", "stable_diffusion_3")
KINDS = ("plans", "profiles", "folders", "weights")
# what a command may end with; an invalid plan is one, wherever it is found out
CODES = {"plans": {0, 3}, "profiles": {0, 2, 4}, "folders": {0, 2, 3, 4}, "weights": {0, 2, 3, 4}}


@dataclass(frozen=True)
class Originals:
    """What is mutated: folders of pipelines, plans for each, and profiles."""

    pipelines: tuple[Path, ...]
    plans: tuple[Path, ...]  # of each pipeline
    cost: Path
    quality: Path
    devices: Path


@dataclass(frozen=True)
class MutatedCase:
    """A command with one mutated input.

    Attributes:
        kind: One of KINDS.
        number: Of the case; kind, number and seed make it again.
        what: What was mutated, and how.
        main: The command.
        arguments: Of the command.
    """

    kind: str
    number: int
    what: str
    main: Main
    arguments: tuple[str, ...]

    @property
    def command(self) -> str:
        """The command's name."""
        return "run-plan" if self.main is run_plan else "partition-model"


@dataclass(frozen=True)
class Outcome:
    """How a case ended, and what is wrong with that; "" where nothing is."""

    case: MutatedCase
    ended: RunEnd
    wrong: str


def run_case(kind: str, number: int, seed: int, originals: Originals, scratch: Path, limits: Limits) -> Outcome:
    """Make a case and run it.

    Args:
        kind: One of KINDS.
        number: Of the case.
        seed: Of all cases.
        originals: What is mutated.
        scratch: A folder that does not exist; it is there only while the case runs.
        limits: What the run may take.
    """
    scratch.mkdir()
    try:
        case = _MAKERS[kind](number, Random(f"{kind} {seed} {number}"), originals, scratch)
        ended = run_forked(case.main, case.arguments, scratch, limits)
        return Outcome(case, ended, wrong_with(case, ended, limits))
    finally:
        shutil.rmtree(scratch)


def wrong_with(case: MutatedCase, ended: RunEnd, limits: Limits) -> str:
    """What is wrong with how a case ended; "" where nothing is."""
    if "Traceback (most recent call last)" in ended.output:
        return "a traceback"
    if ended.code not in CODES[case.kind]:
        return f"exit code {ended.code}"
    if ended.code and not any(line.startswith(f"{case.command}: ") for line in ended.output.splitlines()):
        return "no sentence"
    if ended.cpu_s > limits.cpu_s or ended.wall_s > limits.wall_s:
        return f"{ended.cpu_s:.0f} s of processor time, {ended.wall_s:.0f} s in all"
    if ended.memory_bytes > limits.memory_bytes:
        return f"{ended.memory_bytes / 1e9:.1f} GB"
    return ""


def _plan(number: int, random: Random, originals: Originals, scratch: Path) -> MutatedCase:
    choice = random.randrange(len(originals.pipelines))
    data, what = mutated_json(originals.plans[choice].read_bytes(), random)
    plan = scratch / "mutated.plan.json"
    plan.write_bytes(data)
    if random.random() < 0.2:
        return MutatedCase(
            "plans", number, what, partition_model, ("inspect", str(plan), *(["--json"] * random.randrange(2)))
        )
    return MutatedCase("plans", number, what, run_plan, _run(plan, originals.pipelines[choice], scratch))


def _profile(number: int, random: Random, originals: Originals, scratch: Path) -> MutatedCase:
    option = random.choice(("--profile", "--quality", "--devices"))
    original = {"--profile": originals.cost, "--quality": originals.quality, "--devices": originals.devices}[option]
    data, what = mutated_json(original.read_bytes(), random)
    file = scratch / "mutated.json"
    file.write_bytes(data)
    given = {"--devices": "2", option: str(file)}
    arguments = _partition(originals.pipelines[0], scratch, **given)
    return MutatedCase("profiles", number, f"{option}: {what}", partition_model, arguments)


def _folder(number: int, random: Random, originals: Originals, scratch: Path) -> MutatedCase:
    return _of_folder("folders", number, random, originals, scratch, mutate_folder)


def _weights(number: int, random: Random, originals: Originals, scratch: Path) -> MutatedCase:
    return _of_folder("weights", number, random, originals, scratch, mutate_weights)


def _of_folder(
    kind: str,
    number: int,
    random: Random,
    originals: Originals,
    scratch: Path,
    mutate: Callable[[Path, Random], str],
) -> MutatedCase:
    choice = random.randrange(len(originals.pipelines))
    folder = scratch / originals.pipelines[choice].name
    shutil.copytree(originals.pipelines[choice], folder)
    what = f"{folder.name}/{mutate(folder, random)}"
    if kind == "folders" and random.random() < 0.4:  # which reads no weights
        return MutatedCase(kind, number, what, partition_model, _partition(folder, scratch, **{"--devices": "2"}))
    return MutatedCase(kind, number, what, run_plan, _run(originals.plans[choice], folder, scratch))


_MAKERS = {"plans": _plan, "profiles": _profile, "folders": _folder, "weights": _weights}


def _run(plan: Path, pipeline: Path, scratch: Path) -> tuple[str, ...]:
    return (
        str(plan), "--pipeline", str(pipeline), "--prompt", _PROMPT, "--transport", "emulation", "--steps", "3",
        "--height", str(_SIDE), "--width", str(_SIDE), "--output", str(scratch / "out.png"),
    )  # fmt: skip


def _partition(model: Path, scratch: Path, **options: str) -> tuple[str, ...]:
    given = {"--model": str(model), "--height": str(_SIDE), "--width": str(_SIDE), "--branches": "1", **options}
    return (*(word for pair in given.items() for word in pair), "--output", str(scratch / "made.plan.json"), "--force")


def make_originals(folder: Path, names: Sequence[str] = PIPELINES) -> Originals:
    """Save small pipelines, plans for them and profiles; what the commands import is imported in this process then.

    Args:
        folder: Where to; it is made.
        names: Of the pipelines, see ``tools.small_pipelines``.
    """
    folder.mkdir()
    pipelines = tuple(saved(name, folder) for name in names)
    cost, quality, devices = (folder / f"{name}.json" for name in ("cost", "quality", "devices"))
    _cost_profile(pipelines[0]).save(cost)
    _quality_profile().save(quality)
    devices.write_text(json.dumps({"devices": _DEVICES}))
    plans = tuple(folder / f"{pipeline.name}.plan.json" for pipeline in pipelines)
    for pipeline, plan in zip(pipelines, plans, strict=True):
        call = {"prompt": _PROMPT}  # for the very calls that are made, so that they are traced once
        plan_for(load(pipeline), 2, {"height": _SIDE, "width": _SIDE}, PlanOptions(branches=1), call=call).save(plan)
    _import_all()
    return Originals(pipelines, plans, cost, quality, devices)


def _import_all() -> None:
    """Import what the commands import only where it is used; torch imports much when it first traces."""

    plain = nn.Sequential(nn.Linear(2, 2)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trace(plain, {"input": torch.zeros(1, 2)}, {"input": "latent"})


def _cost_profile(pipeline: Path) -> CostProfile:
    """Of all operators of a pipeline's denoiser, with made-up times."""
    graph = trace_model(model_spec(str(pipeline), height=32, width=32, dtype="float32"))
    time = SignatureCost(median_ms=0.1, iqr_ms=0.01, launch_ms=0.0)
    check = WholeCheck(model="m", fingerprint="f", summed_ms=1.0, whole_ms=1.0, whole_iqr_ms=0.1, module_ms=None)
    return CostProfile(
        schema_version=1, device="cpu", device_name="made up", clock_mhz=None, versions={"torch": "2"},
        dtype="float32", mode="eager", date="2026-01-01", command="none",
        signatures={signature(graph, node): time for node in graph.latent_nodes}, checks=(check,),
    )  # fmt: skip


def _quality_profile() -> QualityProfile:
    """Some rows of the shipped one, and an error of values that lag."""
    shipped = QualityProfile.load()
    drift = MeasuredDrift(denoiser="mine", edges=(("a/add.0", "b/mul.0"),), sketches=((0.5, -1e-7),))
    return shipped.model_copy(update={"rows": shipped.rows[::40], "drift": (drift,)})


_DEVICES = [
    {"name": "h200", "count": 1, "speed": 1.0, "memory_gb": 100, "link_gb_per_s": 100, "latency_us": 8},
    {"name": "l40s"},
]
