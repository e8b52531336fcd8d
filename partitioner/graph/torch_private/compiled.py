"""What torch.compile makes of modules and functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.fx import GraphModule


def uncompiled(module: nn.Module) -> nn.Module:
    """The module that ``torch.compile(module)`` wraps, or the module itself."""
    inner: nn.Module = getattr(module, "_orig_mod", module)
    return inner


@contextmanager
def compiled_call_set_aside(module: nn.Module) -> Iterator[None]:
    """Inside the block, ``module(...)`` runs uncompiled, even after ``module.compile()``; what the block sets stays."""
    compiled = vars(module).pop("_compiled_call_impl", None)
    try:
        yield
    finally:
        if compiled is not None:
            vars(module).setdefault("_compiled_call_impl", compiled)


def compiled_then(function: Callable[..., Any], when_compiled: Callable[[], None]) -> Callable[..., Any]:
    """What torch.compile makes of a function; its first call compiles, calls ``when_compiled`` and only then runs it.

    Compiling is the host's work alone, and running the device's.
    """
    from torch._inductor.compile_fx import compile_fx

    def backend(module: GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        made = cast(Callable[..., Any], compile_fx(module, inputs))
        when_compiled()
        return made

    compiled: Callable[..., Any] = torch.compile(function, backend=backend, dynamic=False)
    return compiled
