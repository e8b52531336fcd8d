"""quality: what a plan costs in quality, against the sequential output of the same seeds and against fewer steps.

    python -m tools.quality --denoiser unet --json
    python -m tools.quality --pipeline FOLDER --prompt "a lighthouse at dusk" --scheduler dpmpp --steps 25

Runs the engine's own code in one process (emulation, which equals the ranks bit for bit). Every row of an engine has a
row of the baseline beside it: fewer sequential steps in the same time. Speed-ups are simulated: from the plan's
predicted times of a step and of an exact step, with the warm-up counted.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from partitioner.costs.model import choose_cost_model
from partitioner.errors import PartitionerError, UsageError, first_line
from partitioner.fleet import parse_fleet
from partitioner.graph.arguments import bind_arguments
from partitioner.graph.export import trace
from partitioner.models.samplers import denoiser_calls, steps_of
from partitioner.models.spec import live_spec
from partitioner.plan.plan import Plan
from partitioner.planning.options import Options
from partitioner.planning.planner import plan_model
from partitioner.search.mode import Mode
from partitioner.staleness.measured import measure_module
from profiles.json_files import JsonFileError
from profiles.quality_profile import FEWER_STEPS, MeasuredDrift, QualityProfile, QualityRow
from runtime.denoiser import denoiser_name
from runtime.driver.noise_schedule import is_flow, is_stochastic
from runtime.loading import load_pipeline
from runtime.pipeline import parallelize
from tools.classifier import Classifier, frechet, frechet_noise
from tools.figures import psnr, ssim
from tools.shapes import Pictures, draw, draw_labels
from tools.train import DENOISERS, TRAINED, calling, picture_grid

FEWEST_FOR_FRECHET = 1000
DRIFT_CALLS, DRIFT_PROBES, DRIFT_PARTS = 8, 16, 8  # calls of a trajectory, probes of each, numbers kept of an edge
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "dpmpp": ("DPMSolverMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "flow": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow_heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "flow_dpmpp": ("DPMSolverMultistepScheduler", FLOW),
    "flow_unipc": ("UniPCMultistepScheduler", FLOW),
}


@dataclass(frozen=True)
class Way:
    """One way to run. predictor: what async mode reads with, or "lookahead"; split: "chain", or "free": as the solver
    finds it best for async mode, folded or not. None for both: as the planner chooses."""

    devices: int
    branches: int | None = None
    split: str | None = None
    predictor: str | None = None
    period: int = 1


@dataclass(frozen=True)
class Case:
    """A sampler, by its name in SCHEDULERS (None: the pipeline's own), and its number of steps."""

    scheduler: str | None
    steps: int


@dataclass(frozen=True)
class Row:
    """A row of the result: how it was run, medians over the samples, and the speed-up over one device.

    frechet_noise: standard deviation of the difference of its Fréchet distance from the sequential output's.
    """

    devices: int
    branches: int
    components: int
    period: int
    split: str
    predictor: str
    scheduler: str
    steps: int
    warmup: int
    samples: int
    psnr_db: float
    ssim: float
    agreement: float | None
    frechet: float | None
    frechet_noise: float | None
    lpips: float | None
    speedup: float
    speedup_source: str


class Subject:
    """A pipeline and what is drawn with it.

    prompts, seeds: one per sample. chunk: samples per call of the pipeline. arguments: of every call.
    """

    def __init__(
        self, pipe: Any, name: str, prompts: Sequence[str], *, chunk: int, guidance: float | None, **arguments: Any
    ) -> None:
        self.pipe = pipe
        self.name = name
        self.prompts = prompts
        self.chunk = min(chunk, len(prompts))
        self.arguments = arguments | ({} if guidance is None else {"guidance_scale": guidance})
        self.labels: torch.Tensor | None = None
        self._plans: dict[tuple[Any, ...], tuple[Plan, str]] = {}
        self._own_scheduler = pipe.scheduler
        pipe.set_progress_bar_config(disable=True)

    def use(self, case: Case) -> None:
        """Give the pipeline the case's sampler."""
        if case.scheduler is None:
            self.pipe.scheduler = self._own_scheduler
            return
        import diffusers

        name, options = SCHEDULERS[case.scheduler]
        if case.scheduler.startswith("flow") != is_flow(self._own_scheduler):
            raise UsageError(
                f"--scheduler {case.scheduler} does not suit {self.name}, whose denoiser predicts "
                f"{'a flow' if is_flow(self._own_scheduler) else 'no flow'}"
            )
        self.pipe.scheduler = getattr(diffusers, name).from_config(self._own_scheduler.config, **options)

    @property
    def sampler(self) -> str:
        """Class of the pipeline's scheduler."""
        return type(self.pipe.scheduler).__name__

    @torch.no_grad()
    def generate(self, steps: int, samples: int | None = None) -> torch.Tensor:
        """(samples, 3, height, width) in [0, 1]; a sample depends on its seed, not on its neighbours. Default: all."""
        made = []
        count = samples or len(self.prompts)
        for first in range(0, count, self.chunk):
            numbers = range(first, min(first + self.chunk, count))
            generators = [torch.Generator().manual_seed(number) for number in numbers]
            prompts = [self.prompts[number] for number in numbers]
            result = self.pipe(
                prompts, num_inference_steps=steps, generator=generators, output_type="pt", **self.arguments
            )
            made.append(result.images.float())
        return torch.cat(made)

    def plan(self, way: Way) -> tuple[Plan, str]:
        """(plan, form of its split) for a way, for calls of ``chunk`` samples."""
        mode: Mode | None = {"chain": "lookahead", "free": "async"}.get(way.split or "")  # type: ignore[assignment]
        if way.period > 1:
            mode = "async"
        key = (way.devices, way.branches, way.period, mode)
        if key not in self._plans:
            cost_model = choose_cost_model(None, "cpu", str(way.devices))
            denoiser = getattr(self.pipe, denoiser_name(self.pipe))
            spec = live_spec(denoiser, self.pipe, batch=self.chunk)
            options = Options(branches=way.branches, mode=mode, period=way.period, force=True)
            made = plan_model(spec, parse_fleet(str(way.devices), cost_model.reference), cost_model, options)
            split = made.chosen.split
            self._plans[key] = made.plan, "one" if split is None else split.form
        return self._plans[key]


@dataclass
class Judge:
    """Compares pictures with the sequential output of one case."""

    subject: Subject
    case: Case
    reference: torch.Tensor
    classifier: Classifier | None = None
    real: torch.Tensor | None = None  # features of drawn pictures
    lpips: Any = None

    @cached_property
    def _exact_features(self) -> torch.Tensor:
        assert self.classifier is not None
        return self.classifier.features(self.reference * 2 - 1)

    @torch.no_grad()
    def row(self, pixels: torch.Tensor, *, speedup: float, **what: Any) -> Row:
        agreement = distance = noise = perceptual = None
        if self.classifier is not None:
            assert self.subject.labels is not None
            agreement = self.classifier.agreement(pixels * 2 - 1, self.subject.labels)
            if self.real is not None:
                features = self.classifier.features(pixels * 2 - 1)
                distance = frechet(features, self.real)
                noise = frechet_noise(features, self._exact_features, self.real)
        if self.lpips is not None:
            perceptual = float(self.lpips(pixels * 2 - 1, self.reference * 2 - 1).median())
        return Row(
            scheduler=self.subject.sampler,
            samples=len(pixels),
            psnr_db=round(float(psnr(pixels, self.reference).median()), 2),
            ssim=round(float(ssim(pixels, self.reference).median()), 4),
            agreement=agreement if agreement is None else round(agreement, 4),
            frechet=distance if distance is None else round(distance, 4),
            frechet_noise=noise if noise is None else round(noise, 4),
            lpips=perceptual,
            speedup=round(speedup, 3),
            speedup_source="simulated",
            **what,
        )

    def sequential(self, steps: int, pixels: torch.Tensor) -> Row:
        """A row of one device: fewer steps than the case's, or all of them, which is the reference itself."""
        name = "fewer_steps" if steps != self.case.steps else "sequential"
        calls = [denoiser_calls(self.subject.sampler, count) for count in (self.case.steps, steps)]
        return self.row(
            pixels, devices=1, branches=1, components=1, period=1, split="one", predictor=name, steps=steps,
            warmup=steps, speedup=calls[0] / calls[1],
        )  # fmt: skip


def measure(
    subject: Subject, case: Case, ways: Sequence[Way], warmup: int, **more: Any
) -> Iterator[tuple[Row, torch.Tensor]]:
    """The rows of a case with their pictures: sequential, each way, then fewer steps for every speed-up reached.

    more: fields of Judge.
    """
    subject.use(case)
    reference = subject.generate(case.steps)
    judge = Judge(subject, case, reference, **more)
    yield judge.sequential(case.steps, reference), reference
    gains = []
    for way in ways:
        plan, form = subject.plan(way)
        mode = "async" if way.predictor not in (None, "lookahead") else plan.mode
        # with a sampler that adds noise the engine runs async
        lookahead = mode == "lookahead" and plan.components > 1 and not is_stochastic(subject.pipe.scheduler)
        exact = max(warmup, plan.components) if lookahead else warmup
        hop = plan.predictor if mode == "lookahead" or way.predictor is None else way.predictor
        with parallelize(
            subject.pipe, plan, transport="emulation", mode=mode, warmup=exact, predictor=hop, keep_weights=True
        ):
            pixels = subject.generate(case.steps)
        run = plan.model_copy(update={"warmup": exact, "mode": "lookahead" if lookahead else "async"})
        gains.append(run.speedup(case.steps, subject.sampler))
        named = "exact" if plan.components == 1 else "lookahead" if lookahead else hop
        row = judge.row(
            pixels, devices=plan.ranks, branches=plan.branches, components=plan.components, period=plan.period,
            split=form, predictor=named, steps=case.steps, warmup=exact, speedup=gains[-1],
        )  # fmt: skip
        yield row, pixels
    calls = denoiser_calls(subject.sampler, case.steps)
    for steps in sorted({steps_of(subject.sampler, calls / gain) for gain in gains} - {case.steps}, reverse=True):
        pixels = subject.generate(steps)
        yield judge.sequential(steps, pixels), pixels


def shipped(name: str, samples: int, chunk: int, guidance: float | None) -> Subject:
    """A denoiser of tools/trained, with prompts of the procedural data set drawn at random."""
    labels = draw_labels(samples, torch.Generator().manual_seed(1))
    subject = Subject(
        load_pipeline(TRAINED / name, torch.float32),
        name,
        Pictures(torch.empty(0), labels).captions,
        chunk=chunk,
        guidance=3.0 if guidance is None else guidance,
        **calling(name),
    )
    subject.labels = labels
    return subject


def loaded(folder: str, prompts: Sequence[str], samples: int, guidance: float | None) -> Subject:
    """A user's pipeline, one sample at a time, the prompts in turn."""
    if not prompts:
        raise UsageError("--pipeline needs --prompt, once or several times")
    try:
        pipe = load_pipeline(folder, torch.float32)
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(f"--pipeline {folder} cannot be loaded: {first_line(error)}") from error
    named = [prompts[number % len(prompts)] for number in range(samples)]
    return Subject(pipe, Path(folder).name, named, chunk=1, guidance=guidance)


def judges(subject: Subject) -> dict[str, Any]:
    """What judges pictures beside PSNR and SSIM: the shipped denoisers' classifier, else LPIPS if installed."""
    if subject.labels is not None:
        classifier = Classifier.load()
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            drawn = draw(draw_labels(4 * FEWEST_FOR_FRECHET, generator), generator).pixels
            real = classifier.features(drawn)
        enough = len(subject.prompts) >= FEWEST_FOR_FRECHET
        return {"classifier": classifier, "real": real if enough else None}
    if importlib.util.find_spec("lpips") is not None:
        import lpips  # type: ignore[import-not-found, unused-ignore]

        return {"lpips": lpips.LPIPS(net="alex", verbose=False)}
    return {}


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(prog="python -m tools.quality", description=__doc__.split("\n", 1)[0])
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument("--denoiser", choices=DENOISERS, help="one of those that the repository ships")
    what.add_argument("--pipeline", metavar="FOLDER", help="a diffusers text-to-image pipeline of your own")
    made.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="for --pipeline; may be repeated")
    made.add_argument("--scheduler", default=None, metavar="LIST", help=f"of {', '.join(SCHEDULERS)}; default: own")
    made.add_argument("--steps", default="50", metavar="LIST", help="denoising steps (default 50)")
    made.add_argument(
        "--ways",
        default="2,4",
        metavar="LIST",
        help="DEVICES[:BRANCHES[:chain|free[:lookahead|hold|linear|adaptive[:PERIOD]]]], such as 2,4:1:free:hold; "
        "what is left out the planner chooses (default 2,4)",
    )
    made.add_argument("--warmup", type=int, default=4, help="exact first steps, counted in the speed-up (default 4)")
    made.add_argument("--guidance-scale", type=float, default=None, help="default 3 for the shipped ones, else own")
    made.add_argument("--samples", type=int, default=256, help="default 256; Fréchet distance from 1000 on")
    made.add_argument("--chunk", type=int, default=64, help="samples per call (default 64; one for --pipeline)")
    made.add_argument("--threads", type=int, default=torch.get_num_threads())
    made.add_argument("--picture", type=Path, metavar="FILE", help="sequential, each way and its difference, enlarged")
    made.add_argument("--plot", type=Path, metavar="FILE", help="quality against speed (needs matplotlib)")
    made.add_argument(
        "--calibrate", type=Path, metavar="FILE", help="add the rows to a quality profile, which partition-model reads"
    )
    made.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    return made


def parse_way(text: str) -> Way:
    """A Way as the command line writes it."""
    parts = text.strip().split(":")
    allowed = (None, ("1", "2"), ("chain", "free"), ("lookahead", "hold", "linear", "adaptive"), None)
    fits = len(parts) <= len(allowed) and all(a is None or p in a for p, a in zip(parts, allowed, strict=False))
    if not fits or any(not parts[i].isdigit() or int(parts[i]) < 1 for i in (0, 4) if i < len(parts)):
        raise UsageError(f"--ways {text!r}: expected DEVICES[:BRANCHES[:chain|free[:PREDICTOR[:PERIOD]]]]")
    devices, branches, split, predictor, period = (*parts, *[""] * (5 - len(parts)))
    return Way(int(devices), int(branches) if branches else None, split or None, predictor or None, int(period or 1))


def cases(schedulers: str | None, steps: str) -> list[Case]:
    """Every sampler with every number of steps."""
    names = schedulers.split(",") if schedulers else [None]
    for name in names:
        if name is not None and name not in SCHEDULERS:
            raise UsageError(f"--scheduler {name}: expected some of {', '.join(SCHEDULERS)}")
    counts = steps.split(",")
    if not all(count.isdigit() and int(count) >= 2 for count in counts):
        raise UsageError(f"--steps {steps}: expected numbers of 2 or more, such as 50,25")
    return [Case(name, int(count)) for name in names for count in counts]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All rows; writes the picture and the plot if asked for."""
    wanted, ways = cases(options.scheduler, options.steps), [parse_way(text) for text in options.ways.split(",")]
    for option in ("warmup", "samples", "chunk", "threads"):
        if getattr(options, option) < 1:
            raise UsageError(f"--{option} is {getattr(options, option)}; expected 1 or more")
    if options.plot:
        try:
            import matplotlib.figure  # noqa: F401
        except ImportError as error:
            raise UsageError("--plot needs matplotlib; install it: pip install matplotlib") from error
    torch.set_num_threads(options.threads)
    if options.denoiser:
        subject = shipped(options.denoiser, options.samples, options.chunk, options.guidance_scale)
    else:
        subject = loaded(options.pipeline, options.prompt, options.samples, options.guidance_scale)
    more, rows, strips = judges(subject), [], []
    for case in wanted:
        start, reference = time.perf_counter(), None
        for row, pixels in measure(subject, case, ways, options.warmup, **more):
            print(f"{time.perf_counter() - start:6.0f} s  {_line(asdict(row))}", file=sys.stderr)
            rows.append(asdict(row))
            reference = pixels if reference is None else reference
            strips.append(torch.cat([pixels[:8], 4 * (pixels[:8] - reference[:8]).abs()], 3))
    if options.picture:
        picture_grid(torch.cat(strips) * 2 - 1, columns=min(8, len(subject.prompts))).save(options.picture)
    document = {
        "environment": {
            "date": time.strftime("%Y-%m-%d"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": importlib.metadata.version("diffusers"),
            "guidance_scale": subject.arguments.get("guidance_scale"),
        },
        "command": options.command,
        "denoiser": subject.name,
        "rows": rows,
    }
    if options.plot:
        plot(document, options.plot)
    if options.calibrate:
        drift = None if options.denoiser else measure_drift(subject, wanted[0])
        calibrate(options.calibrate, document, drift)
    return document


def measure_drift(subject: Subject, case: Case) -> MeasuredDrift:
    """What one-step lag costs, edge by edge, in some steps of one exact trajectory of the subject's first sample."""
    denoiser = getattr(subject.pipe, denoiser_name(subject.pipe))
    calls: list[dict[str, Any]] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = bind_arguments(module, args, kwargs)
        calls.append({name: value for name, value in given.items() if value is not None})

    subject.use(case)
    with denoiser.register_forward_pre_hook(keep, with_kwargs=True):
        subject.generate(case.steps, samples=1)
    first = min(4, len(calls) - 2)  # as after a warm-up
    some = calls[first : first + DRIFT_CALLS]
    graph = trace(denoiser, some[0], live_spec(denoiser, subject.pipe).roles, model=subject.name)
    drift = measure_module(denoiser, graph, some, probes=DRIFT_PROBES)
    return MeasuredDrift(
        denoiser=subject.name,
        edges=tuple((graph.node_by_name[u].key, graph.node_by_name[v].key) for u, v in drift.edges),
        sketches=tuple(tuple(float(f"{x:.5g}") for x in row) for row in drift.condensed(DRIFT_PARTS).tolist()),
    )


def by_case(document: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The rows of each case; the first is its sequential output."""
    found: list[list[dict[str, Any]]] = []
    for row in document["rows"]:
        if row["predictor"] == "sequential":
            found.append([])
        found[-1].append(row)
    return found


def calibrate(file: Path, document: dict[str, Any], drift: MeasuredDrift | None) -> None:
    """Add what was measured to a quality profile, in place of what it has of the same cases over no more samples; exact
    rows say nothing."""
    kept = QualityProfile.load(file) if file.exists() else None
    fields = set(QualityRow.model_fields)
    rows = {_key(row): row for row in (kept.rows if kept else ())}
    for whole, *others in by_case(document):
        for row in others:
            if row["predictor"] == "exact" or row["period"] > 1:
                continue
            own = {name: value for name, value in row.items() if name in fields} | {"denoiser": document["denoiser"]}
            own["steps"] = whole["steps"]  # of the output that it is compared with
            made = QualityRow(**own)
            known = rows.get(_key(made))
            if known is None or known.samples <= made.samples:
                rows[_key(made)] = made
    drifts = {known.denoiser: known for known in (kept.drift if kept else ())}
    if drift is not None:
        drifts[drift.denoiser] = drift
    environment = document["environment"]
    QualityProfile(
        schema_version=1,
        date=environment["date"],
        commands=(*(kept.commands if kept else ()), document["command"]),
        versions={name: environment[name] for name in ("python", "torch", "diffusers")},
        rows=tuple(rows[key] for key in sorted(rows)),
        drift=tuple(drifts.values()),
    ).save(file, overwrite=True)


def _key(row: QualityRow) -> tuple[Any, ...]:
    speedup = row.speedup if row.predictor == FEWER_STEPS else 0.0
    return row.denoiser, row.scheduler, row.steps, row.predictor, row.components, row.split, speedup


def plot(document: dict[str, Any], file: Path) -> None:
    """Quality against speed: a panel per case, a line per predictor, every point with its number of devices."""
    from matplotlib.figure import Figure

    panels = by_case(document)
    figure = Figure(figsize=(5.5 * len(panels), 4.5), layout="constrained")
    for number, (whole, *rows) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        for predictor, split in dict.fromkeys((row["predictor"], row["split"]) for row in rows):
            own = [row for row in rows if (row["predictor"], row["split"]) == (predictor, split)]
            own.sort(key=lambda row: (row["devices"], row["speedup"]))
            gains, decibels = [row["speedup"] for row in own], [row["psnr_db"] for row in own]
            if predictor == FEWER_STEPS:
                axes.plot(gains, decibels, "o--", color="black", label="fewer steps")
                continue
            axes.plot(gains, decibels, "o-", label=f"{predictor}, {split}")
            for row in own:
                point = row["speedup"], row["psnr_db"]
                axes.annotate(str(row["devices"]), point, xytext=(4, 4), textcoords="offset points", fontsize=8)
        axes.set(xlabel="speed-up (simulated)", title=f"{whole['scheduler']}, {whole['steps']} steps")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("PSNR against sequential, dB")
    figure.axes[0].legend(title="(numbers: devices)", fontsize=8)
    figure.suptitle(f"{document['denoiser']}, {panels[0][0]['samples']} samples")
    figure.savefig(file, dpi=110)


_COLUMNS = (
    ("scheduler", "{:<30}"), ("steps", "{:>5}"), ("devices", "{:>7}"), ("branches", "{:>8}"), ("components", "{:>10}"),
    ("split", "{:<10}"), ("predictor", "{:<11}"), ("warmup", "{:>6}"), ("psnr_db", "{:>7.2f}"), ("ssim", "{:>6.4f}"),
    ("agreement", "{:>9}"), ("frechet", "{:>8}"), ("frechet_noise", "{:>13}"), ("speedup", "{:>7.2f}"),
)  # fmt: skip


def _line(row: dict[str, Any]) -> str:
    return "  ".join(form.format("-" if row[name] is None else row[name]) for name, form in _COLUMNS)


def _heading() -> str:
    return "  ".join(f"{name:{form[2]}{form[3:].split('.')[0].rstrip('}f')}}" for name, form in _COLUMNS)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code (0 done, 2 usage)."""
    options = parser().parse_args(argv)
    options.command = "python -m tools.quality " + shlex.join(sys.argv[1:] if argv is None else argv)
    try:
        document = run(options)
    except PartitionerError as error:
        print(f"tools.quality: {error}", file=sys.stderr)
        return error.exit_code
    except JsonFileError as error:
        print(f"tools.quality: {error}", file=sys.stderr)
        return UsageError.exit_code
    if options.json:
        print(json.dumps(document, indent=1))
    else:
        print("\n".join([_heading(), *map(_line, document["rows"])]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
