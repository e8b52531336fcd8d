"""record: runs a pipeline without its weights for a few steps, and finds out how it calls its denoiser."""

from __future__ import annotations

import copy
import importlib.util
import logging
import random
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy
import torch

from partitioner.errors import UsageError, first_line
from partitioner.graph.module_state import ModuleState
from partitioner.graph.nodes import Role
from partitioner.graph.stateless import listed
from partitioner.graph.torch_private.fakes import untold
from partitioner.models.guidance import GuidanceStyle
from partitioner.models.pipeline_call import (
    guessed_calls,
    guidance_arguments,
    images_of,
    missing_arguments,
    of_one_image,
)
from partitioner.models.seen_calls import SeenCall, SeenRoles, roles_of, see
from partitioner.models.sizes import Sizes
from partitioner.models.stand_ins import OutsideCall, StandIns
from partitioner.process import raise_interrupt_behind

_log = logging.getLogger("partitioner")
_STEPS = (3, 2, 12)  # few, exactly two as some distilled models ask for, and enough for one of two denoisers by turns
_NO_GUIDANCE: GuidanceStyle = "none"
_MOST_CALLS = 100  # after which a pipeline without a number of steps is stopped


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
    with _Runs(pipe, name, stand_ins) as runs:
        call, seen, calls = _first_success(runs, sizes, dict(given or {}))
        beside = _called_between(stand_ins.calls, name)
        half, style = _without_guidance(runs, call, seen, calls) if sizes.guided else (None, _NO_GUIDANCE)
        images = images_of(call)
        one = _of_one_image(runs, sizes, seen, given or {}, images) if half is None and images > 1 else None
        return Recording(seen, half, style, call, beside, one, images)


def _of_one_image(
    runs: _Runs, sizes: Sizes, seen: SeenRoles, given: Mapping[str, Any], images: int
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
    with _Runs(pipe, name, stand_ins) as runs:
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
    runs: _Runs, sizes: Sizes, given: dict[str, Any]
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
    runs: _Runs, call: Mapping[str, Any], seen: SeenRoles, calls: list[SeenCall]
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


class _ChangesNothing:
    """Whatever it is asked for is a function that gives its first argument."""

    def __getattr__(self, name: str) -> Any:
        return lambda value, *_more, **_others: value


class _Enough(BaseException):
    """Ends a pipeline's call of which enough was seen."""


class _Runs:
    """Runs one pipeline of stand-ins again and again, each time from the same state."""

    def __init__(self, pipe: Any, name: str, stand_ins: StandIns) -> None:
        self.pipe = pipe
        self.name = name
        self.denoiser = getattr(pipe, name)
        self._stand_ins = stand_ins
        self._packages = ExitStack()

    def __enter__(self) -> _Runs:
        return self

    def __exit__(self, *_error: object) -> None:
        self._packages.close()

    def run(self, call: Mapping[str, Any], variant: int) -> tuple[list[SeenCall], str | None]:
        """The denoiser's calls in a call of the pipeline, and why that ended early, if so.

        Args:
            call: Arguments of the pipeline's call.
            variant: Of the denoiser's outputs.
        """
        calls: list[SeenCall] = []

        def note(args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            calls.append(see(self.denoiser, args, kwargs, output, self._stand_ins.given))
            if len(calls) >= _MOST_CALLS:
                raise _Enough

        while True:
            calls.clear()
            self._stand_ins.variant = variant
            self._stand_ins.given.clear()
            self._stand_ins.calls.clear()
            try:
                with _undisturbed(), self._stand_ins.watch(self.denoiser, note), torch.no_grad():
                    _fresh(self.pipe)(**copy.copy(dict(call)))
            except _Enough:
                return calls, None
            except NameError as error:
                if not self._stand_in_for_package(error):
                    return calls, first_line(error)
            except Exception as error:
                raise_interrupt_behind(error)
                return calls, first_line(error) or type(error).__name__
            else:
                return calls, None

    def _stand_in_for_package(self, error: NameError) -> bool:
        """Put what changes nothing in the place of a package that is not installed, which a pipeline takes for there.

        Such packages (ftfy) mend texts, which no shape depends on. Returns whether the call is worth another try.
        """
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        names, name = frames[-1].f_globals, error.name
        missing = name is not None and name.isidentifier() and importlib.util.find_spec(name) is None
        if not missing or not str(names.get("__name__")).startswith("diffusers.") or name in names:
            return False
        assert name is not None
        _log.warning(
            "the package %s is not installed, and %s needs it for its texts: it is planned as if that changed nothing; "
            "install it to run the pipeline", name, type(self.pipe).__name__,
        )  # fmt: skip
        self._packages.callback(names.pop, name, None)
        names[name] = _ChangesNothing()
        return True


def _fresh(pipe: Any) -> Any:
    """A copy of a pipeline with a sampler of its own, so that no run sees what another left."""
    import diffusers

    made = copy.copy(pipe)
    for name, value in list(vars(pipe).items()):
        if isinstance(value, diffusers.SchedulerMixin) or type(value).__module__.startswith("diffusers.guiders"):
            vars(made)[name] = copy.deepcopy(value)
        elif isinstance(value, diffusers.DiffusionPipeline):
            vars(made)[name] = _fresh(value)
    vars(made)["_progress_bar_config"] = {"disable": True}
    return made


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Inside it random numbers begin anew and warnings are not shown; afterwards all of that is as before."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    drawn, state = random.getstate(), numpy.random.get_state()
    levels = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), untold():
            warnings.simplefilter("ignore")
            diffusers_logging.set_verbosity(diffusers_logging.CRITICAL)
            transformers_logging.set_verbosity(transformers_logging.CRITICAL)
            torch.manual_seed(0)
            random.seed(0)
            numpy.random.seed(0)  # what pipelines that use numpy's own generator draw from
            yield
    finally:
        random.setstate(drawn)
        numpy.random.set_state(state)
        diffusers_logging.set_verbosity(levels[0])
        transformers_logging.set_verbosity(levels[1])
