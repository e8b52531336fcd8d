"""All uses of torch's private names, so that a new release of torch changes one file."""

from __future__ import annotations

import copy
import linecache
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import nn
from torch._guards import detect_fake_mode
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.distributed import ProcessGroupGloo
from torch.distributed import Store as Store  # type: ignore[attr-defined] # public, but not in its __all__
from torch.fx import GraphModule
from torch.fx.graph_module import _loader
from torch.nn.modules import module as module_hooks
from torch.utils._pytree import tree_leaves, tree_map_only, tree_unflatten

__all__ = [
    "FakeTensor",
    "FakeTensorMode",
    "OpOverload",
    "aliased_argument",
    "compiled_call_set_aside",
    "draws_random_numbers",
    "fake_mode_of",
    "forget_source_with",
    "forgotten_sources",
    "hooks_of_all_modules",
    "is_mutated_argument",
    "only_number",
    "tree_leaves",
    "tree_map_only",
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


def draws_random_numbers(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of an operator takes numbers from torch's generator: dropout does only while it is training."""
    if not isinstance(target, OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    arguments = target._schema.arguments
    given = {argument.name: argument.default_value for argument in arguments if argument.has_default_value()}
    given |= dict(zip((argument.name for argument in arguments), args, strict=False)) | dict(kwargs)
    return given.get("train") is not False and given.get("dropout_p") != 0


def fake_mode_of(values: Sequence[Any]) -> FakeTensorMode:
    """The mode that fake tensors among the values belong to, else a new one, which takes real tensors too."""
    found = detect_fake_mode(list(values))
    return found if found is not None else FakeTensorMode(allow_non_fake_inputs=True)


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
def memory_put_back(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """After the block, give tensors the memory back that they had: hooks that offload weights move it."""
    with unset_fake_temporarily():  # in fake mode ``data`` is fake
        held = [(tensor, tensor.data) for tensor in tensors if not isinstance(tensor, FakeTensor)]
    try:
        yield
    finally:
        with unset_fake_temporarily():
            for tensor, data in held:
                now = tensor.data
                if isinstance(now, FakeTensor) or now.device != data.device or now.data_ptr() != data.data_ptr():
                    tensor.data = data


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


def only_number(tensor: torch.Tensor) -> int | float | None:
    """The number of a tensor that holds one, also of a fake one that was made from it; None where there is none."""
    real = getattr(tensor, "constant", None) if isinstance(tensor, FakeTensor) else tensor
    if real is None or real.numel() != 1 or real.is_complex():
        return None
    with unset_fake_temporarily():
        number: int | float = real.item()
        return number


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


def hooks_of_all_modules() -> tuple[dict[int, Any], ...]:
    """The hooks that run before and after the forward of every module, whichever it is."""
    hooks: tuple[dict[int, Any], ...] = (module_hooks._global_forward_pre_hooks, module_hooks._global_forward_hooks)
    return hooks


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
