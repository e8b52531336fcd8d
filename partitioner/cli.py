"""partition-model: a model's name to a plan file. The result goes to stdout, progress and errors to stderr.

Exit codes: 0 done, 1 not foreseen, 2 usage, 3 invalid plan, 4 no feasible split, 130 interrupted, 143 terminated. Torch
is imported only when something is traced, so that --help and usage errors come at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from partitioner._version import __version__
from partitioner.command import CommandParser, run_command
from partitioner.errors import PlanError, UsageError
from partitioner.limits import (
    DTYPES,
    MOST_BATCH,
    MOST_BRANCHES,
    MOST_FRAMES,
    MOST_GB,
    MOST_PERIOD,
    MOST_PIXELS,
    MOST_SCALE,
    MOST_STEPS,
    real,
    whole,
)
from partitioner.models.guidance import GUIDANCE_STYLES
from partitioner.models.guidance_scale import runs_guided, scale_remarks
from partitioner.plan.predictor import PREDICTORS
from partitioner.process import end_at_once, interrupts_put_off
from partitioner.search.mode import MODES
from partitioner.writable import check_apart, check_writable, kept_elsewhere
from profiles.collector import without_collector

if TYPE_CHECKING:
    from partitioner.models.spec import ModelSpec
    from partitioner.planning.options import PlanOptions
    from partitioner.planning.request import PlanRequest
    from profiles.quality_profile import QualityProfile

_EPILOG = """\
examples:
  partition-model --model svd --devices 4
  partition-model --model ./my-pipeline --devices h200,a100-80g --prefer speed --output my.plan.json
  partition-model --model sdxl --devices 2 --profile cuda:0 --save-profile sdxl.profile.json
  partition-model inspect svd-4.plan.json
  partition-model models

exit codes: 0 done, 1 not foreseen, 2 usage, 3 invalid plan, 4 no feasible split
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code. Arguments: those of the process by default."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    code = run_command("partition-model", lambda: _result(arguments), arguments)
    if argv is None and code == 0:  # this is all that the process is for
        end_at_once(code)
    return code


def _result(arguments: list[str]) -> str:
    """What the command prints."""
    if arguments[:1] == ["inspect"]:
        return _inspect(_inspect_parser().parse_args(arguments[1:]))
    if arguments[:1] == ["models"]:
        return _models(_models_parser().parse_args(arguments[1:]))
    if "--list-models" in arguments:
        return _models(_models_parser().parse_args([text for text in arguments if text != "--list-models"]))
    return _partition(_parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="partition-model",
        description="Split a diffusion model's denoiser over several devices and write the plan for it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--list-models", action="store_true", help="print the known names; the same as models")
    parser.add_argument("--model", required=True, metavar="NAME|FOLDER|HUB_ID", help="what to split")
    parser.add_argument(
        "--devices", required=True, metavar="N|LIST|FILE.json",
        help="how many, or names such as h200,a100-80g, or a file that describes them",
    )  # fmt: skip
    out = parser.add_argument_group("output")
    out.add_argument("--output", type=Path, metavar="FILE", help="plan file (default: MODEL-N.plan.json here)")
    out.add_argument(
        "--force", action="store_true", help="overwrite files, and write a plan even if it is slower than one device"
    )
    out.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    cost = parser.add_argument_group("cost")
    cost.add_argument(
        "--device", metavar="NAME", help="estimate for this device (default: the first of LIST, else h200)"
    )
    cost.add_argument(
        "--profile", metavar="cuda:0|cpu|FILE",
        help="measure on a device or use a saved profile (default: cuda:0 if there is one and no --device)",
    )  # fmt: skip
    cost.add_argument("--save-profile", type=Path, metavar="FILE", help="save what was measured")
    size = parser.add_argument_group("inputs (default: as the pipeline's)")
    size.add_argument(
        "--dtype",
        choices=DTYPES,
        metavar="NAME",
        help="float16, bfloat16 or float32 (default: float32 on a CPU, else the model's own)",
    )
    for name, most, text in (
        ("height", MOST_PIXELS, "of the images, in pixels"),
        ("width", MOST_PIXELS, "of the images, in pixels"),
        ("frames", MOST_FRAMES, "of the video"),
    ):
        size.add_argument(f"--{name}", type=whole(1, most), metavar="N", help=text)
    size.add_argument(
        "--batch", type=whole(1, MOST_BATCH), default=1, metavar="N", help="images or videos per call (default: 1)"
    )
    size.add_argument(
        "--steps", type=whole(1, MOST_STEPS), metavar="K", help="denoising steps of a run (default: the model's, or 50)"
    )
    size.add_argument(
        "--scheduler", metavar="CLASS", help="sampler of diffusers, such as DDIMScheduler (default: the model's)"
    )
    size.add_argument("--no-guidance", action="store_true", help="the pipeline runs without classifier-free guidance")
    size.add_argument(
        "--guidance-style", choices=GUIDANCE_STYLES, metavar="STYLE",
        help="how the pipeline does guidance: batch, two-calls, embedded or none (default: as is known of it)",
    )  # fmt: skip
    size.add_argument(
        "--guidance-scale", type=real(0, MOST_SCALE), metavar="X",
        help="what the pipeline is called with, which quality depends on (default: the pipeline's own)",
    )  # fmt: skip
    split = parser.add_argument_group("split")
    split.add_argument(
        "--branches", type=_branches, metavar="auto|N",
        help="how many parts of the work are computed apart, exactly: the calls of a step, the rows of a call",
    )  # fmt: skip
    split.add_argument("--mode", choices=MODES, help="how components overlap (default: the better)")
    split.add_argument(
        "--period",
        type=whole(1, MOST_PERIOD),
        default=1,
        metavar="P",
        help="all components but the last recompute every P steps",
    )
    split.add_argument(
        "--warmup",
        type=whole(1, MOST_STEPS),
        metavar="W",
        help="exact steps at the start (default: 4, or one per component if more)",
    )
    split.add_argument(
        "--predictor", choices=PREDICTORS,
        help="how async mode estimates another component's current output from its earlier ones: the last one, "
        "extrapolated from the last two, or the same scaled down (default: what was measured to be best)",
    )  # fmt: skip
    split.add_argument(
        "--prefer", choices=("quality", "speed", "memory"), default="quality",
        help="likeness to the output of one device, the shortest step, or the least memory per device",
    )  # fmt: skip
    split.add_argument(
        "--quality",
        type=Path,
        metavar="FILE",
        help="quality profile that tools.quality made (default: the shipped one)",
    )
    split.add_argument(
        "--prove", action="store_true", help="prove how far the step time is from the least possible (needs HiGHS)"
    )
    split.add_argument(
        "--refine", action="store_true", help="measure whole components, rescale the costs of their nodes, solve again"
    )
    split.add_argument(
        "--memory-limit", type=real(1e-9, MOST_GB), metavar="GB", help="most memory to use of each device, in 1e9 bytes"
    )
    return parser


def _branches(text: str) -> int | None:
    """None for "auto"."""
    return None if text == "auto" else whole(1, MOST_BRANCHES)(text)


def _inspect_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="partition-model inspect", description="Check a plan file and show what it says.", allow_abbrev=False
    )
    parser.add_argument("plan", metavar="PLAN", help="plan file")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    return parser


def _inspect(arguments: argparse.Namespace) -> str:
    from partitioner.plan.pipeline_plans import PipelinePlans, load_plans
    from partitioner.report import describe, describe_several

    found = load_plans(arguments.plan)
    if not isinstance(found, PipelinePlans):
        return _shown(describe(found, arguments.plan), arguments.json)
    described = {name: describe(plan, None) for name, plan in found.plans.items()}
    return _shown(describe_several(described, arguments.plan), arguments.json)


def _models_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="partition-model models",
        description="Print the names that --model takes, and what is known of the models.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    return parser


def _models(arguments: argparse.Namespace) -> str:
    from partitioner.model_list import describe_models, models_text

    described = describe_models()
    return json.dumps(described, indent=1, allow_nan=False) if arguments.json else models_text(described)


def _partition(arguments: argparse.Namespace) -> str:
    """Plan, write the plan file, return the report. What can be wrong in the arguments is found before any work."""
    start = time.perf_counter()
    # a process that has not used torch yet can be forked without harm to torch's threads
    untouched = "torch" not in sys.modules
    with without_collector() if untouched else contextlib.nullcontext():
        return _plan(arguments, start, untouched)


def _plan(arguments: argparse.Namespace, start: float, untouched: bool) -> str:
    requests = _requests(arguments, untouched)
    first = next(iter(requests.values()))
    output = arguments.output or _default_output(first.denoiser.name, len(first.fleet))
    check_writable(output, "--output", arguments.force)

    from partitioner.plan.pipeline_plans import PipelinePlans
    from partitioner.planning.planner import plan
    from partitioner.planning.together import plan_together
    from partitioner.report import describe, describe_search, describe_several

    if len(requests) == 1:
        plannings = {name: plan(request, progress=_progress) for name, request in requests.items()}
    else:
        plannings = plan_together(requests, progress=_progress)
    plans = {name: planning.plan for name, planning in plannings.items()}
    made = PipelinePlans.of(plans) if len(plans) > 1 else next(iter(plans.values()))
    _save(made.save, output, arguments.force)
    if arguments.save_profile is not None:
        _save(first.costs.save, arguments.save_profile, arguments.force)

    total = time.perf_counter() - start
    described = {
        name: {
            **describe(planning.plan, str(output), requests[name].sampling),
            **describe_search(planning, {**planning.seconds, "total": total}),
        }
        for name, planning in plannings.items()
    }
    document = describe_several(described, str(output)) if len(plans) > 1 else next(iter(described.values()))
    return _shown(document, arguments.json)


def _save(save: Callable[..., object], path: Path, force: bool) -> None:
    """Write a file; what cannot be written is kept elsewhere. save: takes a path and whether it may be overwritten."""
    try:
        with interrupts_put_off():  # whole or not at all, and nothing beside it
            save(path, overwrite=force)
    except (PlanError, UsageError) as error:
        kept = kept_elsewhere("partition-model", ".json", lambda other: save(other, overwrite=True))
        raise UsageError(f"{error}; {'it is lost' if kept is None else f'it is in {kept}'}") from error


def _requests(arguments: argparse.Namespace, untouched: bool) -> dict[str, PlanRequest]:
    """What the arguments ask for, by the pipeline's names of its denoisers; the cheapest checks come first.

    untouched: this process has not used torch yet.
    """
    options = _options(arguments)
    guided = runs_guided(not arguments.no_guidance, arguments.guidance_style, arguments.guidance_scale)
    files = {"--output": arguments.output, "--save-profile": arguments.save_profile}
    for option, path in files.items():
        if path is not None:
            check_writable(path, option, arguments.force)
    check_apart(files)

    from partitioner.costs.model import choose_cost_model
    from partitioner.fleet import parse_devices

    devices = parse_devices(arguments.devices)  # before torch is imported to look for a GPU
    costs = choose_cost_model(
        arguments.profile,
        arguments.device,
        devices,
        command=f"partition-model --model {arguments.model} --profile {arguments.profile}",
        progress=_progress,
    )
    if arguments.save_profile is not None and costs.live is None:
        raise UsageError("--save-profile saves what was measured; give --profile cuda:0 or --profile cpu as well")

    from partitioner.models.built_in import BUILT_IN
    from partitioner.models.lean_import import import_lean
    from partitioner.models.pipeline_specs import model_specs
    from partitioner.models.samplers import check_scheduler
    from partitioner.planning.expected_quality import SamplingSetup
    from partitioner.planning.request import PlanRequest
    from partitioner.planning.sources import FromSpec

    if untouched and arguments.model in BUILT_IN:
        import_lean()
    if arguments.scheduler is not None:
        check_scheduler(arguments.scheduler)
    specs = model_specs(
        arguments.model,
        height=arguments.height,
        width=arguments.width,
        frames=arguments.frames,
        batch=arguments.batch,
        guidance=guided,
        guidance_style=arguments.guidance_style,
        dtype=costs.default_dtype if arguments.dtype is None else arguments.dtype,
    )
    untouched = untouched and costs.live is None and not any(spec.recorded or spec.beside for spec in specs.values())
    quality = _quality_profile(arguments.quality)

    def request_of(spec: ModelSpec) -> PlanRequest:
        if spec.recorded is not None:
            _progress(spec.recorded)
        for what_it_means in scale_remarks(spec.name, spec.guidance_style, arguments.guidance_scale):
            _progress(what_it_means)
        sampling = SamplingSetup.of(
            spec, steps=arguments.steps, scheduler=arguments.scheduler, guidance_scale=arguments.guidance_scale
        )
        return PlanRequest(FromSpec(spec, fork=untouched), devices, costs, options, sampling, quality)

    made = {id(spec): request_of(spec) for spec in specs.values()}
    return {name: made[id(spec)] for name, spec in specs.items()}


def _quality_profile(path: Path | None) -> QualityProfile:
    from profiles.json_files import JsonFileError
    from profiles.quality_profile import SHIPPED, QualityProfile

    try:
        return QualityProfile.load(path or SHIPPED)
    except JsonFileError as error:
        raise UsageError(str(error)) from error


def _options(arguments: argparse.Namespace) -> PlanOptions:
    from partitioner.planning.options import PlanOptions

    return PlanOptions(
        branches=arguments.branches,
        mode=arguments.mode,
        period=arguments.period,
        warmup=arguments.warmup,
        predictor=arguments.predictor,
        prefer=arguments.prefer,
        memory_limit_bytes=None if arguments.memory_limit is None else arguments.memory_limit * 1e9,
        refine=arguments.refine,
        prove=arguments.prove,
        force=arguments.force,
    )


def _default_output(model: str, devices: int) -> Path:
    """'svd-4.plan.json' in the current folder; of a hub id only the last part."""
    from partitioner.plan.fields import as_label

    return Path(f"{as_label(model.split('/')[-1])}-{devices}.plan.json")


def _shown(document: dict[str, Any], as_json: bool) -> str:
    from partitioner.report_text import report_text

    return json.dumps(document, indent=1, allow_nan=False) if as_json else report_text(document)


def _progress(message: str) -> None:
    print(f"partition-model: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
