"""Second denoisers: modules of a pipeline that are called in turns with its denoiser, and that no plan covers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from partitioner.graph.torch_private import uncompiled


@contextmanager
def counted(pipe: Any, denoiser: nn.Module, called: Callable[[str], None]) -> Iterator[None]:
    """Inside the block, have every call of a second denoiser counted.

    That is a module of the pipeline with the denoiser's class and the same parameters, such as Wan 2.2's transformer_2.

    Args:
        pipe: the pipeline.
        denoiser: the one that an engine runs.
        called: is told the attribute that holds a second one, after each of its calls.
    """
    with ExitStack() as stack:
        for name, module in list(getattr(pipe, "__dict__", {}).items()):
            if isinstance(module, nn.Module) and _is_another(uncompiled(module), denoiser):
                hook = module.register_forward_hook(lambda *_call, name=name: called(name))
                stack.callback(hook.remove)
        yield


def _is_another(module: nn.Module, denoiser: nn.Module) -> bool:
    return module is not denoiser and type(module) is type(denoiser) and _parameters(module) == _parameters(denoiser)


def _parameters(module: nn.Module) -> dict[str, Any]:
    return {name: tensor.shape for name, tensor in module.named_parameters()}
