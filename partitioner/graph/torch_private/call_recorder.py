"""calls_recorded: all calls of operators as torch.export sees them, without torch.export."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._export.utils import _compiling_state_context
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode

from partitioner.graph.torch_private.dispatch import TorchDispatchMode
from partitioner.graph.torch_private.schemas import OpOverload


@contextmanager
def calls_recorded(record: Callable[[OpOverload, tuple[Any, ...], dict[str, Any]], Any]) -> Iterator[None]:
    """Inside the block, ``record`` is given all calls of operators, before autograd takes them apart, as torch.export.

    No setting by which torch computes is another meanwhile: it would be so for other threads, too.

    Args:
        record: Makes the call, and returns what it gives.
    """
    with _compiling_state_context(), enable_python_dispatcher(), _CallRecorder(record):
        yield


def _without_backends(func: OpOverload, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a call as they are under torch.export, which switches cuDNN off: group_norm has that."""
    position = _backend_position(func)
    if position is None:
        return args
    left_out = [argument.default_value for argument in func._schema.arguments[len(args) : position]]
    return (*args[:position], *left_out, False, *args[position + 1 :])


@cache
def _backend_position(func: OpOverload) -> int | None:
    names = [argument.name for argument in func._schema.arguments]
    return next((names.index(name) for name in ("cudnn_enabled", "cudnn_enable") if name in names), None)


class _CallRecorder(ProxyTorchDispatchMode):  # type: ignore[no-untyped-call]
    """Stands where torch.export has its proxies: torch takes no other kind of mode there."""

    def __init__(self, record: Callable[[OpOverload, tuple[Any, ...], dict[str, Any]], Any]) -> None:
        TorchDispatchMode.__init__(self, torch._C.DispatchKey.PreDispatch)  # type: ignore[no-untyped-call]
        self._mode_key = torch._C._TorchDispatchModeKey.PROXY
        self.enter_stack = []
        self._record = record

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func == torch.ops.prim.device.default:
            return func(*args, **(kwargs or {}))
        with (
            torch._C._DisablePythonDispatcher()
        ):  # what is inside the operator is computed without Python, which is faster
            return self._record(func, _without_backends(func, args), kwargs or {})
