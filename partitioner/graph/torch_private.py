"""All uses of torch's private names, so that a new release of torch changes one file."""

from __future__ import annotations

import copy
import importlib
import linecache
import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache, partial
from typing import Any, Self, cast

import torch
from torch import nn
from torch._dispatch.python import enable_python_dispatcher
from torch._export.utils import _compiling_state_context
from torch._guards import detect_fake_mode
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.autograd import forward_ad
from torch.distributed import ProcessGroupGloo
from torch.fx import GraphModule
from torch.fx import proxy as fx_proxy
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.fx.graph_module import _loader
from torch.nn.modules import module as module_hooks
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map_only, tree_unflatten

__all__ = [
    "AttentionSettings",
    "Draws",
    "FakeTensor",
    "FakeTensorMode",
    "FakesWithConstants",
    "OpOverload",
    "TorchDispatchMode",
    "TreeSpec",
    "abandon_capture",
    "aliased_argument",
    "calls_recorded",
    "compiled_call_set_aside",
    "compiled_then",
    "copy_all",
    "draws_random_numbers",
    "fake_mode_of",
    "forget_source_with",
    "forgotten_sources",
    "hooks_of_all_modules",
    "is_mutated_argument",
    "nothing_to_read",
    "plain_callable",
    "real_of",
    "storage_is_shared",
    "tree_flatten",
    "tree_leaves",
    "tree_map_only",
    "tree_unflatten",
    "uncompiled",
    "under_a_transform",
    "unset_fake_temporarily",
    "without_constants",
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


def plain_callable(target: Any) -> Any:
    """What an operator calls, without its own call in Python."""
    return target._op if isinstance(target, OpOverload) else target


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
def untold() -> Iterator[None]:
    """Inside the block torch's fakes do not log, with a traceback, the errors that they also raise."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def nothing_to_read(lines: bool) -> Iterator[None]:
    """Inside the block, torch.export writes neither stack traces nor Python code for people, a fifth of its time.

    Nor does it print the whole graph where it fails.

    Args:
        lines: Write stack traces all the same, into each node's meta.
    """
    trace_module: Any = importlib.import_module("torch.export._trace")  # here, for it takes half a second
    proxies: Any = fx_proxy
    before = proxies.CapturedTraceback
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = logger.level
    try:
        if not lines:  # torch.fx.config.do_not_emit_stack_traces says the same from torch 2.12 on
            proxies.CapturedTraceback = _NoTraceback
        logger.setLevel(logging.ERROR)
        trace_module.print = lambda *_, **__: None
        with _use_lazy_graph_module(True):  # code is written when it is first called or read
            yield
    finally:
        del trace_module.print
        logger.setLevel(level)
        proxies.CapturedTraceback = before


class _NoTraceback:
    """Stands for torch's CapturedTraceback."""

    @classmethod
    def extract(cls) -> type[_NoTraceback]:
        """Nothing."""
        return cls

    @staticmethod
    def summary() -> None:
        """Nothing."""


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


class Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes whether random numbers are drawn inside it, by this thread. drew: whether so."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drew = False

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.drew = self.drew or draws_random_numbers(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


class AttentionSettings:
    """Inside it, ``changed`` is called when it has been set how torch is to compute attention."""

    def changed(self) -> None:
        """Called after each setting."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._before = {name: getattr(torch._C, name) for name in dir(torch._C) if name.startswith("_set_sdp_use_")}
        for name, setter in self._before.items():
            setattr(torch._C, name, partial(self._set, setter))
        return self

    def __exit__(self, *_: object) -> None:
        for name, setter in self._before.items():
            setattr(torch._C, name, setter)

    def _set(self, setter: Callable[[bool], None], enabled: bool) -> None:
        setter(enabled)
        self.changed()


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


def real_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """A tensor with values: itself, or what a fake one was made from; None where its values are not known."""
    real = getattr(tensor, "constant", None) if isinstance(tensor, FakeTensor) else tensor
    if real is None or real.is_meta or hasattr(real, "__tensor_flatten__"):
        return None
    return None if hasattr(real.untyped_storage(), _UNKNOWN) else real


def storage_is_shared(tensor: torch.Tensor) -> bool:
    """Whether a tensor, a numpy array or a process beside this tensor has a part of the memory that it lies in."""
    storage = tensor.untyped_storage()
    own = 2 if tensor._base is None else 3  # the tensor, what it is a view of, and ``storage``
    counted: int = torch._C._storage_Use_Count(storage._cdata)
    return counted > own or bool(tensor.is_shared())  # type: ignore[no-untyped-call]


class FakesWithConstants(FakeTensorMode):  # type: ignore[no-untyped-call]
    """A fake mode in which small tensors that are made of numbers alone are real.

    So a module that is built in it has the true values of the tables that it keeps beside its parameters. What is left
    empty at first, as layers leave their parameters, is fake, and so is all that depends on something fake.
    """

    def __init__(self, max_bytes: int) -> None:
        """max_bytes: of the tensors that are real."""
        super().__init__(allow_non_fake_inputs=True)
        self.max_bytes = max_bytes
        self.keeps_constants = True
        self.state_before_draws: torch.Tensor | None = None  # of torch's generator, before real random numbers

    def dispatch(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Make one operator call, fake or real."""
        if self.keeps_constants and func in _FILLS and isinstance(args[0], FakeTensor):
            return args[0]  # parameters without storage, which constructors fill one by one
        real = self.keeps_constants and func not in _LEFT_EMPTY and not any(issubclass(t, FakeTensor) for t in types)
        try:
            made = super().dispatch(func, types, args, dict(kwargs or {}))
        except DataDependentOutputException:
            if not real:
                raise
            made = None  # a number
        if not real:
            if self.keeps_constants and isinstance(func, OpOverload) and func._schema.is_mutable:
                self._note_overwritten(func, args)
            return made
        tensors = [leaf for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        small = (
            sum(tensor.numel() * tensor.element_size() for tensor in tensors) <= self.max_bytes
        )  # also of sparse ones
        if not small or any(t.device.type != "cpu" for t in tensors):
            return made
        if self.state_before_draws is None and draws_random_numbers(func, args, kwargs or {}):
            self.state_before_draws = torch.get_rng_state()
        return func(*args, **(kwargs or {}))

    def _note_overwritten(self, func: OpOverload, args: Sequence[Any]) -> None:
        """Note a real tensor that something fake is written to, so that its values are not known any more."""
        for position, value in enumerate(args):
            if is_mutated_argument(func, position) and type(value) is torch.Tensor:
                setattr(value.untyped_storage(), _UNKNOWN, True)  # which views share


_LEFT_EMPTY = {
    torch.ops.aten.empty.memory_format, torch.ops.aten.empty_like.default, torch.ops.aten.empty_strided.default,
    torch.ops.aten.new_empty.default, torch.ops.aten.new_empty_strided.default, torch.ops.aten.empty_permuted.default,
}  # fmt: skip
_FILLS = {
    torch.ops.aten.uniform_.default, torch.ops.aten.normal_.default, torch.ops.aten.zero_.default,
    torch.ops.aten.fill_.Scalar,
}  # fmt: skip
_UNKNOWN = "values_are_unknown"


@contextmanager
def without_constants() -> Iterator[None]:
    """Inside the block all that is made in a surrounding FakesWithConstants is fake, as for tracing."""
    found = [mode for mode in _get_current_dispatch_mode_stack() if isinstance(mode, FakesWithConstants)]
    before = [mode.keeps_constants for mode in found]
    try:
        for mode in found:
            mode.keeps_constants = False
        yield
    finally:
        for mode, kept in zip(found, before, strict=True):
            mode.keeps_constants = kept


def uncompiled(module: nn.Module) -> nn.Module:
    """The module that ``torch.compile(module)`` wraps, or the module itself."""
    inner: nn.Module = getattr(module, "_orig_mod", module)
    return inner


def under_a_transform() -> bool:
    """Whether torch.func transforms what is called now (vmap, jvp, grad), or gradients are computed forward."""
    return bool(torch._C._are_functorch_transforms_active()) or forward_ad._current_level >= 0


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


def gloo_group(store: Any, rank: int, world: int, *, host: str, timeout: timedelta) -> Any:
    """A gloo process group of its own, apart from torch.distributed's default one.

    Args:
        store: A torch.distributed.Store, where the ranks find each other.
        rank: This process's number; world: how many processes there are.
        host: Address of the network interface that it is bound to.
        timeout: For connecting, and for every wait that names no other.
    """
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [ProcessGroupGloo.create_device(hostname=host)]
    options._timeout = timeout
    return ProcessGroupGloo(store, rank, world, options)


def copy_all(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    """Copy each source to its target of the same shape and dtype; on a GPU in few kernels, where none has gaps."""
    if len(targets) == 1:
        targets[0].copy_(sources[0])
    elif targets:
        torch._foreach_copy_(list(targets), list(sources))


def abandon_capture(device: int, pool: Any) -> None:
    """Have torch's allocator end a CUDA-graph capture whose own end failed.

    Args:
        device: Index of the GPU.
        pool: The memory pool of the graph.

    Raises:
        RuntimeError: No capture into that pool is under way.
        AttributeError: This torch has no such calls.
    """
    torch._C._cuda_endAllocateToPool(device, pool)
    torch._C._cuda_releasePool(device, pool)


def is_profiling() -> bool:
    """Whether torch.profiler is at work in this process, in whichever thread."""
    return bool(torch.autograd.profiler._is_profiler_enabled)
