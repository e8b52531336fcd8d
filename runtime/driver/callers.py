"""Callers: who makes a denoiser call: a thread or an asyncio task, the pipeline in whose code it is, its scheduler.

The calling pipeline is found on the stack, by what it is: the first argument of the nearest method, or function, whose
first argument has the denoiser and a scheduler among its attributes. So a second pipeline that is made of the first
one's parts counts by its own scheduler.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import nn

from partitioner.graph.torch_private.compiled import uncompiled

Reference = Callable[[], Any]  # gives an object, or None once it is gone


@dataclass(frozen=True)
class Caller:
    """Who makes a call. None of it is kept alive.

    Attributes:
        flow: the thread, or the asyncio task that runs in it.
        pipeline: the pipeline; None in a loop of the user's own.
        scheduler: the pipeline's, or that of the user's own loop; None where there is none.
    """

    flow: Reference
    pipeline: Reference | None
    scheduler: Reference | None

    @property
    def is_gone(self) -> bool:
        """Whether it makes no more calls: its thread or task has ended, or its pipeline or scheduler is no more."""
        flow = self.flow()
        if flow is None or (flow.done() if isinstance(flow, asyncio.Task) else not flow.is_alive()):
            return True
        scheduler = self.scheduler() if self.scheduler is not None else None
        if self.pipeline is not None:
            return getattr(self.pipeline(), "scheduler", None) is not scheduler or scheduler is None
        return scheduler is None and self.scheduler is not None

    def is_same(self, other: Caller) -> bool:
        """Whether the other one is the same thread or task, pipeline and scheduler."""
        return self.flow() is other.flow() and self.may_be(other)

    def may_be(self, other: Caller) -> bool:
        """Whether the other one may go on with this one's trajectory.

        A pipeline does so in one thread; a loop of the user's own may have every call made by another one of a pool.
        """
        same = _same(self.pipeline, other.pipeline) and _same(self.scheduler, other.scheduler)
        return same and (self.pipeline is None or self.flow() is other.flow())


def caller_of(denoiser: nn.Module, scheduler: Callable[[], Any] | None = None) -> Caller:
    """Who makes the present call of a denoiser.

    Args:
        denoiser: what is called.
        scheduler: gives the scheduler that counts where no pipeline makes the call.

    >>> denoiser = nn.Identity()
    >>> class Pipeline:
    ...     def __init__(self):
    ...         self.unet, self.scheduler = denoiser, "its scheduler"
    ...     def __call__(self):
    ...         return caller_of(denoiser)
    >>> pipeline = Pipeline()
    >>> caller = pipeline()
    >>> caller.pipeline() is pipeline, caller.scheduler()
    (True, 'its scheduler')
    """
    pipeline = _pipeline_on(sys._getframe(1), denoiser)
    used = scheduler() if pipeline is None and scheduler is not None else getattr(pipeline, "scheduler", None)
    return Caller(
        _reference(_task() or threading.current_thread()),
        _reference(pipeline) if pipeline is not None else None,
        _reference(used) if used is not None else None,
    )


def _pipeline_on(frame: FrameType | None, denoiser: nn.Module) -> Any:
    """The nearest first argument on the stack that has the denoiser and a scheduler; None where there is none."""
    seen: set[int] = set()
    while frame is not None:
        code = frame.f_code
        if code.co_argcount:
            owner = frame.f_locals.get(code.co_varnames[0])
            if id(owner) not in seen:
                seen.add(id(owner))
                if _has(owner, denoiser) and getattr(owner, "scheduler", None) is not None:
                    return owner
        frame = frame.f_back
    return None


def _has(owner: Any, denoiser: nn.Module) -> bool:
    """Whether an object's attributes hold the denoiser, be it as torch.compile wraps it."""
    attributes = getattr(owner, "__dict__", None)
    if not isinstance(attributes, dict):
        return False
    values = (*attributes.values(), *attributes.get("_modules", {}).values())
    modules = [value for value in values if isinstance(value, nn.Module)]
    return any(uncompiled(module) is denoiser for module in modules)


def _task() -> Any:
    """The asyncio task that runs in this thread; None outside of an event loop."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def _reference(value: Any) -> Reference:
    try:
        return weakref.ref(value)
    except TypeError:  # of a kind that nothing can refer to weakly
        return lambda: value


def _same(one: Reference | None, other: Reference | None) -> bool:
    return (one() if one is not None else None) is (other() if other is not None else None)
