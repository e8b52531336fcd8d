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

from partitioner.cli_options import inspect_parser, models_parser, plan_parser
from partitioner.command import run_command
from partitioner.errors import PlanError, UsageError
from partitioner.models.guidance_scale import runs_guided, scale_remarks
from partitioner.process import end_at_once, interrupts_put_off
from partitioner.writable import check_apart, check_writable, kept_elsewhere
from profiles.collector import without_collector

if TYPE_CHECKING:
    from partitioner.models.spec import ModelSpec
    from partitioner.planning.options import PlanOptions
    from partitioner.planning.request import PlanRequest
    from profiles.quality_profile import QualityProfile


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
        return _inspect(inspect_parser().parse_args(arguments[1:]))
    if arguments[:1] == ["models"]:
        return _models(models_parser().parse_args(arguments[1:]))
    if "--list-models" in arguments:
        return _models(models_parser().parse_args([text for text in arguments if text != "--list-models"]))
    return _partition(plan_parser().parse_args(arguments))


def _inspect(arguments: argparse.Namespace) -> str:
    from partitioner.plan.pipeline_plans import PipelinePlans, load_plans
    from partitioner.report import describe, describe_several

    found = load_plans(arguments.plan)
    if not isinstance(found, PipelinePlans):
        return _shown(describe(found, arguments.plan), arguments.json)
    described = {name: describe(plan, None) for name, plan in found.plans.items()}
    return _shown(describe_several(described, arguments.plan), arguments.json)


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
    from partitioner.planning.request import PlanRequest
    from partitioner.planning.sampling_setup import SamplingSetup
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
