"""PipelineRuns: runs a pipeline without weights again and again, each time from the same state."""

from __future__ import annotations

import copy
import importlib.util
import logging
import random
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy
import torch

from partitioner.errors import first_line
from partitioner.graph.torch_private.fakes import untold
from partitioner.models.seen_calls import SeenCall, see
from partitioner.models.stand_ins import StandIns
from partitioner.process import raise_interrupt_behind

_log = logging.getLogger("partitioner")
_MOST_CALLS = 100  # after which a pipeline without a number of steps is stopped


class _ChangesNothing:
    """Whatever it is asked for is a function that gives its first argument."""

    def __getattr__(self, name: str) -> Any:
        return lambda value, *_more, **_others: value


class _Enough(BaseException):
    """Ends a pipeline's call of which enough was seen."""


class PipelineRuns:
    """Runs one pipeline of stand-ins again and again, each time from the same state.

    Args:
        pipe: The pipeline, from ``build_pipeline`` or ``twin_of``.
        name: What it calls its denoiser.
        stand_ins: What made its modules.
    """

    def __init__(self, pipe: Any, name: str, stand_ins: StandIns) -> None:
        self.pipe = pipe
        self.name = name
        self.denoiser = getattr(pipe, name)
        self._stand_ins = stand_ins
        self._packages = ExitStack()

    def __enter__(self) -> PipelineRuns:
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
