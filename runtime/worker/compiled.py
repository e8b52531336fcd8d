"""compiled: what torch.compile makes of a lowered segment."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from torch import fx

_ONE_AT_A_TIME = threading.Lock()  # ranks that are threads of one process compile one after the other


def compiled(module: fx.GraphModule) -> Callable[..., Sequence[torch.Tensor]]:
    """The module's function, compiled in the first call (seconds to minutes) for the shapes of that call.

    Its results differ from the module's in the last bits: operators are fused and sums reordered. Shapes are those
    that were traced, so that another compilation is an exception (other strides, say); torch compiles one function
    at most 8 times and runs it as it is from then on.
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
