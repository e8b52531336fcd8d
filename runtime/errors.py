"""Every error that a user can meet at run time; each says what was expected, what came and what to do."""

from __future__ import annotations


class EngineError(Exception):
    """Base of the run-time errors; exit_code is what run-plan ends with."""

    exit_code = 5


class InputError(EngineError):
    """A call of the denoiser that the engine refuses before anything is sent; the engine stays usable."""

    exit_code = 2


class PlanMismatch(EngineError):
    """The plan does not fit this denoiser or these devices; nothing was started."""

    exit_code = 3


class EngineClosed(EngineError):
    """The engine was closed, or ended by an earlier failure, which is its ``__cause__``."""


class StartupError(EngineError):
    """A rank did not get ready in time, or died while starting."""


class RankError(EngineError):
    """A failure in one rank: ``rank``, ``component``, ``step`` (denoiser calls since the start) and the cause."""

    def __init__(self, message: str, *, rank: int, component: int | None = None, step: int | None = None) -> None:
        where = f"rank {rank}"
        if component is not None:
            where += f" (component {component})"
        if step is not None:
            where += f", step {step}"
        super().__init__(f"{where}: {message}")
        self.rank = rank
        self.component = component
        self.step = step


class RankDied(RankError):
    """A rank's process ended."""


class RankStalled(RankError):
    """A rank made no progress within the step deadline."""


class ComponentFailed(RankError):
    """Code inside a component raised; ``node`` is the key of the failing node, ``remote_traceback`` its own."""

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
        at = f" at node {node}" if node else ""
        tail = f"\n--- traceback of rank {rank} ---\n{remote_traceback}" if remote_traceback else ""
        super().__init__(f"{message}{at}{tail}", rank=rank, component=component, step=step)
        self.node = node
        self.remote_traceback = remote_traceback


class RankOutOfMemory(ComponentFailed):
    """A component needs more memory than its device has."""


class NonFiniteValue(ComponentFailed):
    """NaN or Inf in a value that a component computed (only with check_finite)."""


class MessageError(RankError):
    """A message that does not belong: another plan, step, tensor, shape or dtype than expected."""
