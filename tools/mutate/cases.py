"""Cases: a mutated file, or a folder with one, and the commands that read it; all follow from a seed."""

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
from partitioner.fleet import parse_devices
from partitioner.graph.export import trace
from partitioner.models.find_spec import model_spec
from partitioner.models.spec import trace_model
from partitioner.plan.pipeline_plans import load_plans
from partitioner.planning.options import PlanOptions
from profiles.cost_profile import CostProfile, SignatureCost, WholeCheck
from profiles.quality_profile import MeasuredDrift, QualityProfile
from runtime.cli import main as run_plan
from runtime.live_plans import plan_for
from tools.mutate.documents import mutated_file
from tools.mutate.folders import mutate_folder, mutate_weights
from tools.mutate.forked import Limits, RunEnd, run_forked
from tools.small_pipelines import load, saved

_SIDE = 32  # pixels
_PROMPT = "a red cat"
Main = Callable[[Sequence[str]], int]
PIPELINES = ("stable_diffusion", "flux", "stable_diffusion_3")
KINDS = ("plans", "profiles", "folders", "weights")
_NO_MEMORY = ("allocate memory", "memory allocation of", "MemoryError", "bad_alloc")  # what ends then may say
_MORE = ("What to do: ", "  ")  # what may follow a sentence: advice where a model cannot be traced, and lines of code
# what a command may end with; a plan that is one for other calls is 2, any other wrong one 3, wherever it is found out
CODES = {"plans": {0, 2, 3}, "profiles": {0, 2, 4}, "folders": {0, 2, 3, 4}, "weights": {0, 2, 3, 4}}


@dataclass(frozen=True)
class Originals:
    """What is mutated: folders of pipelines, plans for each, and profiles."""

    pipelines: tuple[Path, ...]
    plans: tuple[Path, ...]  # of each pipeline
    cost: Path
    quality: Path
    devices: Path


@dataclass(frozen=True)
class Invocation:
    """A command on one input.

    Attributes:
        main: What it runs.
        arguments: What it is given.
        writes: The name of the file that it writes where it ends well; "" where it writes none.
    """

    main: Main
    arguments: tuple[str, ...]
    writes: str = ""

    @property
    def name(self) -> str:
        """What its messages begin with."""
        return "run-plan" if self.main is run_plan else "partition-model"


@dataclass(frozen=True)
class Outcome:
    """How a command ended on a mutated input.

    Attributes:
        kind: One of KINDS.
        number: Of the mutation; kind, number and seed make it again.
        what: What was mutated, and how.
        command: What was run.
        ended: How it ended.
        wrong: What is wrong with that; "" where nothing is.
    """

    kind: str
    number: int
    what: str
    command: Invocation
    ended: RunEnd
    wrong: str


def run_case(kind: str, number: int, seed: int, originals: Originals, scratch: Path, limits: Limits) -> list[Outcome]:
    """Make a mutated input, and run each command that reads it.

    Args:
        kind: One of KINDS.
        number: Of the mutation.
        seed: Of all mutations.
        originals: What is mutated.
        scratch: A folder that does not exist; it is there only while the case runs.
        limits: What each run may take.
    """
    scratch.mkdir()
    outcomes = []
    try:
        what, commands = _MAKERS[kind](Random(f"{kind} {seed} {number}"), originals, scratch)
        for command in commands:
            ended = run_forked(command.main, command.arguments, scratch, limits)
            wrong = wrong_with(kind, command, ended, limits)
            outcomes.append(Outcome(kind, number, what, command, ended, wrong))
        return outcomes
    finally:
        shutil.rmtree(scratch)


def wrong_with(kind: str, command: Invocation, ended: RunEnd, limits: Limits) -> str:
    """What is wrong with how a command ended on an input of a kind; "" where nothing is."""
    lines = ended.output.splitlines()
    sentences = [line for line in lines if line.startswith(f"{command.name}: error: ")]
    if "Traceback (most recent call last)" in ended.output:
        return "a traceback"
    if any(words in ended.output for words in _NO_MEMORY):
        return "more memory than there may be"
    if ended.code not in CODES[kind]:
        return f"exit code {ended.code}"
    after = lines[lines.index(sentences[0]) + 1 :] if sentences else []
    if len(sentences) != bool(ended.code) or not all(line.startswith(_MORE) for line in after):
        return f"{len(sentences)} sentences at exit code {ended.code}, or something after it"
    if not all(line.isprintable() for line in (*sentences, *ended.result.split("\n"))):
        return "what a terminal obeys instead of showing it"
    if ended.code and ended.result:
        return f"a result at exit code {ended.code}"
    if set(ended.touched) != ({command.writes} if command.writes and not ended.code else set()):
        return f"files left, changed or missing: {', '.join(ended.touched) or command.writes}"
    if ended.processes:
        return f"{ended.processes} processes left"
    if ended.cpu_s > limits.cpu_s or ended.wall_s > limits.wall_s:
        return f"{ended.cpu_s:.0f} s of processor time, {ended.wall_s:.0f} s in all"
    if ended.memory_bytes > limits.memory_bytes:
        return f"{ended.memory_bytes / 1e9:.1f} GB"
    return ""


Made = tuple[str, tuple[Invocation, ...]]  # what was mutated, and what reads it


def _plan(random: Random, originals: Originals, scratch: Path) -> Made:
    choice = random.randrange(len(originals.pipelines))
    plan = scratch / "mutated.plan.json"
    what = mutated_file(originals.plans[choice], plan, load_plans, random)
    inspect = Invocation(partition_model, ("inspect", str(plan), *(["--json"] * random.randrange(2))))
    return f"{originals.plans[choice].name}: {what}", (inspect, _run(plan, originals.pipelines[choice], scratch))


def _profile(random: Random, originals: Originals, scratch: Path) -> Made:
    option, original, load = random.choice((
        ("--profile", originals.cost, CostProfile.load),
        ("--quality", originals.quality, QualityProfile.load),
        ("--devices", originals.devices, lambda file: parse_devices(str(file))),
    ))  # fmt: skip
    file = scratch / "mutated.json"
    what = mutated_file(original, file, load, random)
    given = {"--devices": "2", option: str(file)}
    return f"{option}: {what}", (_partition(originals.pipelines[0], scratch, **given),)


def _folder(random: Random, originals: Originals, scratch: Path) -> Made:
    folder, plan = _copied(random, originals, scratch)
    what = mutate_folder(folder, random)
    partition = _partition(folder, scratch, **{"--devices": "2"})
    return f"{folder.name}/{what}", (partition, _run(plan, folder, scratch))


def _weights(random: Random, originals: Originals, scratch: Path) -> Made:
    folder, plan = _copied(random, originals, scratch)
    return f"{folder.name}/{mutate_weights(folder, random)}", (_run(plan, folder, scratch),)


def _copied(random: Random, originals: Originals, scratch: Path) -> tuple[Path, Path]:
    """A copy of one of the pipelines, and its plan."""
    choice = random.randrange(len(originals.pipelines))
    original = originals.pipelines[choice]
    return Path(shutil.copytree(original, scratch / original.name)), originals.plans[choice]


_MAKERS = {"plans": _plan, "profiles": _profile, "folders": _folder, "weights": _weights}


def _run(plan: Path, pipeline: Path, scratch: Path) -> Invocation:
    arguments = (
        str(plan), "--pipeline", str(pipeline), "--prompt", _PROMPT, "--transport", "emulation", "--steps", "3",
        "--height", str(_SIDE), "--width", str(_SIDE), "--output", str(scratch / "out.png"),
    )  # fmt: skip
    return Invocation(run_plan, arguments, "out.png")


def _partition(model: Path, scratch: Path, **options: str) -> Invocation:
    given = {"--model": str(model), "--height": str(_SIDE), "--width": str(_SIDE), "--branches": "1", **options}
    words = (word for pair in given.items() for word in pair)
    return Invocation(partition_model, (*words, "--output", str(scratch / "made.plan.json")), "made.plan.json")


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
