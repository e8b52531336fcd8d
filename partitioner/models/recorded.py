"""record: runs a pipeline without its weights for a few steps, and finds out how it calls its denoiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from partitioner.errors import UsageError
from partitioner.graph.module_state import ModuleState
from partitioner.graph.nodes import Role
from partitioner.graph.stateless import listed
from partitioner.models.guidance import GuidanceStyle
from partitioner.models.pipeline_call import (
    guessed_calls,
    guidance_arguments,
    images_of,
    missing_arguments,
    of_one_image,
)
from partitioner.models.pipeline_runs import PipelineRuns
from partitioner.models.seen_calls import SeenCall, SeenRoles, roles_of
from partitioner.models.sizes import Sizes
from partitioner.models.stand_ins import OutsideCall, StandIns

_STEPS = (3, 2, 12)  # few, exactly two as some distilled models ask for, and enough for one of two denoisers by turns
_NO_GUIDANCE: GuidanceStyle = "none"


@dataclass(frozen=True)
class Recording:
    """How a pipeline calls its denoiser.

    Attributes:
        seen: The arguments and roles of its calls.
        half: Those without guidance, where with it a call holds both halves, or more parts, in one batch; else None.
        guidance: "batch": all of them in one call; "two-calls": one after the other, with the same latent and timestep;
            "embedded": its scale is an argument of the denoiser; "none": none was seen.
        call: What the pipeline was called with.
        beside: Other modules that the pipeline called between the denoiser's calls, such as a ControlNet.
        one: The arguments of calls for one image, where those of ``seen`` are for several and there is no half.
        images: Images or videos that the pipeline was called for.
    """

    seen: SeenRoles
    half: SeenRoles | None
    guidance: GuidanceStyle
    call: Mapping[str, Any]
    beside: tuple[str, ...] = ()
    one: SeenRoles | None = None
    images: int = 1


def record(
    pipe: Any, name: str, stand_ins: StandIns, sizes: Sizes, given: Mapping[str, Any] | None = None
) -> Recording:
    """Run a pipeline of stand-ins and look at how it calls its denoiser.

    Args:
        pipe: The pipeline, from ``build_pipeline`` or ``twin_of``.
        name: What the pipeline calls its denoiser.
        stand_ins: What made its modules.
        sizes: What to call it for.
        given: Arguments for its call; what is not given is guessed from its signature.

    Raises:
        UsageError: No call of it could be guessed, or the calls show no noisy sample.
    """
    with PipelineRuns(pipe, name, stand_ins) as runs:
        call, seen, calls = _first_success(runs, sizes, dict(given or {}))
        beside = _called_between(stand_ins.calls, name)
        half, style = _without_guidance(runs, call, seen, calls) if sizes.guided else (None, _NO_GUIDANCE)
        images = images_of(call)
        one = _of_one_image(runs, sizes, seen, given or {}, images) if half is None and images > 1 else None
        return Recording(seen, half, style, call, beside, one, images)


def _of_one_image(
    runs: PipelineRuns, sizes: Sizes, seen: SeenRoles, given: Mapping[str, Any], images: int
) -> SeenRoles | None:
    """What calls for one image look like, where theirs are the rows of a call for several; None where they are not."""
    try:
        _, one, _ = _first_success(runs, replace(sizes, batch=1), of_one_image(given))
    except UsageError:
        return None
    alike = one.example.tensors.keys() == seen.example.tensors.keys() and one.latent == seen.latent
    return one if alike and one.rows * images == seen.rows and _is_half(one, seen) else None


def is_denoiser(pipe: Any, name: str, stand_ins: StandIns, call: Mapping[str, Any]) -> bool:
    """Whether a module of a pipeline is a denoiser: its calls take what its earlier ones have led to.

    A module that gives something to another as it is, as a ControlNet does, is none: it is a part of the other's step.

    Args:
        pipe: The pipeline of stand-ins.
        name: What it calls the module.
        stand_ins: What made its modules.
        call: What to call it with.
    """
    with PipelineRuns(pipe, name, stand_ins) as runs:
        calls, others = runs.run(call, 0)[0], runs.run(call, 1)[0]
    given = [made.gave for made in stand_ins.calls if made.path == name]
    if any(made.took & gave for made in stand_ins.calls for gave in given if made.path != name):
        return False
    try:
        return len(calls) > 1 and bool(roles_of(calls, others).roles)
    except UsageError:
        return False


def _called_between(calls: Sequence[OutsideCall], name: str) -> tuple[str, ...]:
    """The other modules that were called between the first and the last call of one."""
    own = [number for number, call in enumerate(calls) if call.path == name]
    between = [call.path.split(".")[0] for call in calls[own[0] : own[-1]]] if own else []
    return tuple(path for path in dict.fromkeys(between) if path != name)


def _first_success(
    runs: PipelineRuns, sizes: Sizes, given: dict[str, Any]
) -> tuple[dict[str, Any], SeenRoles, list[SeenCall]]:
    """The first of the guessed calls that reaches the denoiser in two steps, and what it shows."""
    failures: list[str] = []
    state = ModuleState(runs.denoiser)
    for steps in _STEPS:
        for guessed in guessed_calls(runs.pipe, runs.denoiser, sizes, steps, given):
            off = {} if sizes.guided else dict.fromkeys(guidance_arguments(runs.pipe), 1.0)
            call = {**guessed, **off, **given}
            calls, failure = runs.run(call, 0)
            if failure is None or len(calls) > 1:
                try:
                    return call, roles_of(calls, runs.run(call, 1)[0]), calls
                except UsageError as error:
                    failure = str(error) if calls else f"it did not call its {runs.name}"
            failures.append(f"with {', '.join(_shown(call))}: {failure.rstrip('.')}")
    missing = missing_arguments(runs.pipe, call)
    tried = "; ".join(dict.fromkeys((failures[0], failures[-1])))
    what = f"it needs {', '.join(missing)}, which cannot be guessed" if missing else tried
    changes = state.differences()
    if changes and not missing:
        raise UsageError(
            f"how {type(runs.pipe).__name__} calls its {runs.name} was to be found by trying it out, but its call "
            f"changes {listed(changes)}. What a denoiser keeps of its calls for the pipeline to read is lost where "
            "other devices compute them: this pipeline cannot be run so"
        )
    raise UsageError(
        f"how {type(runs.pipe).__name__} calls its {runs.name} was to be found by trying it out, but {what}. Give "
        "arguments that it can be called with: parallelize(pipe, devices=N, call={...})"
    )


def _shown(call: Mapping[str, Any]) -> list[str]:
    return [name for name in call if name not in ("output_type", "use_resolution_binning", "expand_prompts")]


def _without_guidance(
    runs: PipelineRuns, call: Mapping[str, Any], seen: SeenRoles, calls: list[SeenCall]
) -> tuple[SeenRoles | None, GuidanceStyle]:
    """What calls look like without guidance, if with it they hold its parts in a batch; and the style of guidance."""
    names = guidance_arguments(runs.pipe)
    style: GuidanceStyle = "two-calls" if seen.calls_per_step > 1 else "none"
    for scale in (1.0, 0.0) if names else ():
        others, _ = runs.run({**call, **dict.fromkeys(names, scale)}, 0)
        alone = seen.of(others) if others else None
        if alone is None:
            continue
        if alone.rows < seen.rows and seen.rows % alone.rows == 0:
            return (alone if _is_half(alone, seen) else None), "batch"
        if alone.calls_per_step < seen.calls_per_step:
            return None, "two-calls"
        if style == "none" and _prompts(others[0], seen) != _prompts(calls[0], seen):
            style = "embedded"
    return None, style


def _is_half(alone: SeenRoles, seen: SeenRoles) -> bool:
    """Whether a call without guidance has the arguments of one with it, with fewer rows."""
    tensors, both = alone.example.tensors, seen.example.tensors
    return all(
        tensors[path].shape[1:] == both[path].shape[1:] and tensors[path].dtype == both[path].dtype for path in both
    )


def _prompts(call: SeenCall, seen: SeenRoles) -> list[Any]:
    """The arguments of a call that stay the same for a trajectory."""
    kept = [path for path in call.tensors if seen.roles.get(path) is Role.PROMPT]
    return [call.tensors[path].name for path in kept] + list(call.literals.values())
