"""Second denoisers: other modules of a pipeline that are called in turns with its denoiser, such as transformer_2."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from partitioner.graph.torch_private.compiled import uncompiled


def second_denoisers(pipe: Any, denoiser: nn.Module) -> dict[str, nn.Module]:
    """The pipeline's other modules of the denoiser's class, by attribute: Wan 2.2's transformer_2.

    Args:
        pipe: the pipeline.
        denoiser: the one that it is known by.
    """
    modules = {
        name: uncompiled(module)
        for name, module in list(getattr(pipe, "__dict__", {}).items())
        if isinstance(module, nn.Module)
    }
    return {
        name: module for name, module in modules.items() if module is not denoiser and type(module) is type(denoiser)
    }


@contextmanager
def counted(modules: dict[str, nn.Module], planned: Collection[str], called: Callable[[str], None]) -> Iterator[None]:
    """Inside the block, have every call of a second denoiser counted that no plan covers.

    Args:
        modules: the second denoisers, by attribute.
        planned: those that a plan covers.
        called: is told the attribute that holds one, after each of its calls.
    """
    with ExitStack() as stack:
        for name, module in modules.items():
            if name not in planned:
                hook = module.register_forward_hook(lambda *_call, name=name: called(name))
                stack.callback(hook.remove)
        yield
