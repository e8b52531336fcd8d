"""compiled: a lowered segment as torch.compile makes it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from torch import fx

_ONE_AT_A_TIME = threading.Lock()  # ranks that are threads of one process compile one after the other


def compiled(module: fx.GraphModule) -> Callable[..., Sequence[torch.Tensor]]:
    """The module's function; its first call compiles it for the shapes of that call, in seconds to minutes.

    Its results differ from the module's in the last bits: operators are fused and sums reordered. Later calls have the
    same shapes, those that were traced, and rarely need another compilation (for other strides, say). torch compiles
    one function at most 8 times, and from then on runs it uncompiled.
    """
    # its own code object, unlike Module.__call__, which all modules share: the bound on compilations is per code object
    run: Callable[..., Sequence[torch.Tensor]] = torch.compile(module.forward, dynamic=False)
    is_compiled = False

    def call(*inputs: torch.Tensor) -> Sequence[torch.Tensor]:
        nonlocal is_compiled
        if is_compiled:
            return run(*inputs)
        with _ONE_AT_A_TIME:
            outputs = run(*inputs)
        is_compiled = True
        return outputs

    return call
