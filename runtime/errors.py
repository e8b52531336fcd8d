"""Every error that a user can meet at run time; each message says what was expected, what came and what to do.

docs/guides/troubleshooting.md lists them with their ways out.
"""

from __future__ import annotations

import copyreg
import re
from typing import Any


class EngineError(Exception):
    """Base of the run-time errors. exit_code: what run-plan ends with."""

    exit_code = 5


class InputError(EngineError):
    """A call of the denoiser that the engine refuses before anything is sent; the engine stays usable."""

    exit_code = 2


class PlanMismatch(EngineError):
    """The plan does not fit this denoiser or these devices; nothing was started."""

    exit_code = 3


class OtherDenoiser(PlanMismatch):
    """The plan was made for another denoiser; one that is made for this one fits."""


class OtherCalls(InputError):
    """The plan does not fit a call; one that is made for such calls may fit."""


class EngineClosed(EngineError):
    """The engine was closed, or an earlier failure has ended it, which is then the ``__cause__``."""


class EngineBusy(EngineError):
    """The engine is in the middle of a call, which what was asked of it would have to wait for in vain."""


class OtherProcess(EngineError):
    """A forked process asked something of an engine that another process has started; that one's goes on."""


class WeightsChanged(EngineError):
    """A file of the denoiser's weights was written to while it was needed, and what it held cannot be had any more."""


class StartupError(EngineError):
    """A rank did not get ready in time, or died while starting."""


class RankError(EngineError):
    """A failure in one rank.

    step: number of the evaluation, counted from the engine's start.
    """

    def __init__(
        self,
        message: str,
        *,
        rank: int,
        component: int | None = None,
        step: int | None = None,
        remote_traceback: str = "",
    ) -> None:
        super().__init__(message)
        self.rank = rank
        self.component = component
        self.step = step
        self.remote_traceback = remote_traceback

    @property
    def message(self) -> str:
        """What happened, without where."""
        return str(self.args[0])

    def __str__(self) -> str:
        component = f" (component {self.component})" if self.component is not None else ""
        step = f", step {self.step}" if self.step is not None else ""
        return f"rank {self.rank}{component}{step}: {self.message}"

    @property
    def remote_traceback(self) -> str:
        """That of the rank's process; where this error's own is shown, it follows as a note."""
        return self._remote_traceback

    @remote_traceback.setter
    def remote_traceback(self, text: str) -> None:
        self._remote_traceback = text
        self.__notes__ = [f"--- traceback of rank {self.rank} ---\n{text}"] if text else []

    def __reduce__(self) -> tuple[Any, ...]:  # the default cannot give keyword arguments back
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class RankDied(RankError):
    """A rank's process ended."""


class RankStalled(RankError):
    """A rank made no progress within the step deadline. value: the tensor of it that another rank waits for."""

    def __init__(
        self,
        message: str,
        *,
        rank: int,
        component: int | None = None,
        step: int | None = None,
        value: str | None = None,
    ) -> None:
        super().__init__(message, rank=rank, component=component, step=step)
        self.value = value


class ConnectionBroke(RankError):
    """Two ranks lost their connection although both still run."""


class MessageError(RankError):
    """A message is not the expected one: it is of another plan, step, tensor, shape or dtype."""


class ComponentFailed(RankError):
    """Code inside a component raised; ``node`` is the key of the failing node."""

    def __init__(
        self,
        message: str,
        *,
        rank: int,
        component: int | None = None,
        step: int | None = None,
        node: str | None = None,
        remote_traceback: str = "",
    ) -> None:
        super().__init__(
            f"{message} at node {node}" if node else message,
            rank=rank,
            component=component,
            step=step,
            remote_traceback=remote_traceback,
        )
        self.node = node


class RankOutOfMemory(ComponentFailed):
    """A component needs more memory than its device has; ``size_bytes`` is what it asked for, where that is known."""

    def __init__(
        self,
        message: str,
        *,
        rank: int,
        component: int | None = None,
        step: int | None = None,
        node: str | None = None,
        remote_traceback: str = "",
        size_bytes: int | None = None,
    ) -> None:
        super().__init__(
            message, rank=rank, component=component, step=step, node=node, remote_traceback=remote_traceback
        )
        self.size_bytes = size_bytes


class NonFiniteValue(ComponentFailed):
    """NaN or Inf in a value that a component computed (only with check_finite)."""


_UNITS = {"bytes": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def bytes_wanted(error: BaseException) -> int | None:
    """How much memory was asked for, as an allocator's error says; None where it does not.

    >>> bytes_wanted(RuntimeError("CUDA out of memory. Tried to allocate 2.50 GiB."))
    2684354560
    """
    found = re.search(r"tried to allocate ([\d.]+) ?(bytes|B|KiB|MiB|GiB|TiB)\b", str(error), re.IGNORECASE)
    return int(float(found[1]) * _UNITS.get(found[2], 1)) if found else None
