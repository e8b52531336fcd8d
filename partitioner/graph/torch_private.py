"""All uses of torch's private names, so that a new release of torch changes one file."""

from __future__ import annotations

import copy
import linecache
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from torch import nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed import ProcessGroupGloo
from torch.distributed import Store as Store  # type: ignore[attr-defined] # public, but not in its __all__
from torch.fx import GraphModule
from torch.fx.graph_module import _loader
from torch.utils._pytree import tree_unflatten

__all__ = [
    "FakeTensorMode",
    "OpOverload",
    "aliased_argument",
    "compiled_call_set_aside",
    "forget_source_with",
    "forgotten_sources",
    "is_mutated_argument",
    "tree_unflatten",
    "uncompiled",
    "without_own_hooks",
]


def is_mutated_argument(target: Any, position: int) -> bool:
    """Whether an operator writes to the argument at that position; detach_ does not, though its schema says so."""
    if not isinstance(target, OpOverload) or target._schema.name == "aten::detach_":
        return False
    arguments = target._schema.arguments
    if position >= len(arguments):
        return False
    alias = arguments[position].alias_info
    return alias is not None and alias.is_write


def aliased_argument(target: Any) -> int | None:
    """Position of the argument whose storage the operator's output may share; None where there is none.

    reshape, contiguous, flatten and the casts return their argument itself where they can, though their schemas do not
    say so.
    """
    if not isinstance(target, OpOverload):
        return 0  # operator.getitem
    for position, argument in enumerate(target._schema.arguments):
        if argument.alias_info is not None:
            return position
    return 0 if target._schema.name in _MAY_ALIAS else None


@contextmanager
def forgotten_sources() -> Iterator[None]:
    """After the block, free the source text of the GraphModules that were made in it.

    torch keeps it for ever, for tracebacks: a program that traces again and again would grow.
    """
    before = set(_loader.eval_cache)
    try:
        yield
    finally:
        for name in set(_loader.eval_cache) - before:
            _forget_source(name)


def forget_source_with(module: GraphModule) -> None:
    """Free the module's source text when the module is collected."""
    weakref.finalize(module, _forget_source, module.forward.__code__.co_filename)


def _forget_source(name: str) -> None:
    _loader.eval_cache.pop(name, None)
    linecache.cache.pop(name, None)


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


def without_own_hooks(module: nn.Module) -> nn.Module:
    """A shallow copy of a module, which shares all that it has, but for hooks on its own call."""
    made = copy.copy(module)
    made._forward_hooks = OrderedDict()
    made._forward_pre_hooks = OrderedDict()
    return made


_MAY_ALIAS = {"aten::reshape", "aten::contiguous", "aten::flatten", "aten::to", "aten::dropout"}


def gloo_group(store: Store, rank: int, world: int, *, host: str, timeout: timedelta) -> Any:
    """A gloo process group of its own, apart from torch.distributed's default one.

    Args:
        store: Where the ranks find each other.
        rank: This process's number; world: how many processes there are.
        host: Address of the network interface that it is bound to.
        timeout: For connecting, and for every wait that names no other.
    """
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [ProcessGroupGloo.create_device(hostname=host)]
    options._timeout = timeout
    return ProcessGroupGloo(store, rank, world, options)
