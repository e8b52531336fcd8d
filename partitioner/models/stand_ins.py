"""StandIns: a pipeline's modules without memory, whose calls give made-up values of the right shapes.

Their weights are fake tensors. A call from outside, of a module or of a part of one, runs its forward on shapes alone;
then every fake tensor of the result becomes a real one, whose values are drawn from a seed that all arguments of the
call decide. So a pipeline's own code works on real tensors, and equal values mean equal causes.
"""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from partitioner.graph.torch_private.compiled import uncompiled
from partitioner.graph.torch_private.fakes import FakeTensor, FakeTensorMode
from partitioner.graph.torch_private.trees import tree_leaves, tree_map_only
from partitioner.process import raise_interrupt_behind

_SMALL_BUFFER = 1 << 20  # elements; smaller ones keep memory, for code may look at their values
_MOST_DRAWN = 1 << 26  # elements of a tensor that are all drawn; larger ones repeat one row

Observer = Callable[[tuple[Any, ...], Mapping[str, Any], Any], None]


def digest_of(tensor: torch.Tensor) -> bytes:
    """A short name for a tensor's dtype, shape and values; of a fake one for dtype and shape."""
    made = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=16)
    if not isinstance(tensor, FakeTensor) and tensor.numel() > 0:
        plain = tensor.detach().cpu().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)
        made.update(plain.numpy().tobytes())
    return made.digest()


@dataclass(frozen=True, slots=True)
class OutsideCall:
    """A call of a module, or of a part of one, from the pipeline's own code.

    Attributes:
        path: "unet", or "vae.decoder" of a part.
        took: Names (``digest_of``) of the tensors among its arguments.
        gave: Names of the tensors that it gave.
    """

    path: str
    took: frozenset[bytes]
    gave: frozenset[bytes]


class StandIns:
    """Makes modules whose calls from outside are computed by shape, and remembers what they gave.

    Attributes:
        variant: Other values come from the watched module for another variant, so that what depends on them shows.
        calls: All calls from outside, in order.
        given: Names (``digest_of``) of the tensors that modules other than the watched one have given.
    """

    def __init__(self) -> None:
        self.variant = 0
        self.calls: list[OutsideCall] = []
        self.given: set[bytes] = set()
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._inside = False
        self._watched: nn.Module | None = None
        self._observer: Observer | None = None
        self._known: dict[tuple[Any, ...], Any] = {}

    @contextmanager
    def building(self) -> Iterator[None]:
        """Inside it modules are built without memory; hand them to ``take`` afterwards."""
        with self._mode, torch.no_grad():
            yield

    def take(self, module: nn.Module, path: str) -> nn.Module:
        """Have the calls of a module that was made in ``building`` computed by shape; returns the module.

        Args:
            module: The module.
            path: What the pipeline calls it.
        """
        for child in module.modules():
            for name, buffer in child._buffers.items():
                if isinstance(buffer, FakeTensor) and buffer.numel() < _SMALL_BUFFER:
                    make = torch.ones if buffer.is_floating_point() else torch.zeros
                    child._buffers[name] = make(buffer.shape, dtype=buffer.dtype)
        return self._with_calls(module, path, {})

    def twin(self, module: nn.Module, path: str) -> nn.Module:
        """A copy of a module in memory, which has none; nothing of the module itself is changed.

        Where a call cannot be computed by shape, the module itself computes it.

        Args:
            module: The module, on any device.
            path: What the pipeline calls it.
        """
        module = uncompiled(module)
        memo: dict[int, Any] = {}
        kept: list[Any] = []  # so that no id in memo is given to something else
        for child in module.modules():
            for name in ("_hf_hook", "forward", "_old_forward"):  # accelerate's offloading, and what replaces a method
                if name in vars(child):
                    memo[id(vars(child)[name])] = None
                    kept.append(vars(child)[name])
            for value in (*child._parameters.values(), *child._buffers.values(), *vars(child).values()):
                if isinstance(value, torch.Tensor) and id(value) not in memo:
                    memo[id(value)] = self._without_memory(value)
        made: nn.Module = copy.deepcopy(module, memo)
        originals = {id(twin): own for own, twin in zip(module.modules(), made.modules(), strict=True)}
        for child in made.modules():
            for name in ("_hf_hook", "forward", "_old_forward"):
                vars(child).pop(name, None)
        return self._with_calls(made, path, originals)

    @contextmanager
    def watch(self, module: nn.Module, observer: Observer) -> Iterator[None]:
        """Inside it, tell the observer the arguments and the result of every call of a module."""
        self._watched, self._observer = module, observer
        try:
            yield
        finally:
            self._watched = self._observer = None

    def _without_memory(self, tensor: torch.Tensor) -> torch.Tensor:
        is_parameter = isinstance(tensor, nn.Parameter)
        if not is_parameter and tensor.numel() < _SMALL_BUFFER and not tensor.is_meta:
            return tensor.detach().clone().cpu()
        with self._mode:
            fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
        return nn.Parameter(fake, requires_grad=False) if is_parameter else fake

    def _with_calls(self, module: nn.Module, path: str, originals: Mapping[int, nn.Module]) -> nn.Module:
        for name, child in module.named_modules():
            vars(child)["_apply"] = functools.partial(_apply, child)
            if type(child).forward is nn.Module.forward:
                continue  # lists of modules
            where = f"{path}.{name}" if name else path
            call = functools.partial(self._call, child, where, originals.get(id(child)))
            vars(child)["forward"] = functools.update_wrapper(cast(Any, call), type(child).forward.__get__(child))
        return module

    def _call(self, module: nn.Module, path: str, original: nn.Module | None, *args: Any, **kwargs: Any) -> Any:
        forward = type(module).forward.__get__(module)
        if self._inside:
            return forward(*args, **kwargs)
        watched = module is self._watched
        key = _key(path, args, kwargs)
        if key is None or key not in self._known:
            self._inside = True
            try:
                output = self._compute(forward, original, args, kwargs, whole=watched)
            finally:
                self._inside = False
            tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
            is_by_shape = all(isinstance(tensor, FakeTensor) for tensor in tensors)
            if key is not None and is_by_shape and key == _key(path, args, kwargs):  # it has put nothing into a list
                self._known[key] = output  # shapes alone, which the same shapes will give again
        else:
            output = self._known[key]
        leaves = tree_leaves((args, kwargs))
        took = [digest_of(leaf) if isinstance(leaf, torch.Tensor) else repr(type(leaf)).encode() for leaf in leaves]
        kind = torch.Tensor if watched else FakeTensor  # of what the module itself computed, no variant would differ
        output = _real(output, kind, f"{path} {self.variant if watched else 0}", took)
        gave = frozenset(digest_of(leaf) for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor))
        self.calls.append(OutsideCall(path, frozenset(took), gave))
        if watched:
            assert self._observer is not None
            self._observer(args, kwargs, output)
        else:
            self.given |= gave
        return output

    def _compute(
        self,
        forward: Callable[..., Any],
        original: nn.Module | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        whole: bool,
    ) -> Any:
        """The result, computed by shape.

        Args:
            forward: The module's own.
            original: What computes where this fails; None where there is no such thing.
            args: Of the call.
            kwargs: Of the call.
            whole: Whether all tensors are to be without memory, those too that depend on no weight: large position
                tables. Masks then have no values, which code may look at; it is tried again with them.
        """
        if whole:
            try:
                with self._mode:
                    return forward(*args, **kwargs)
            except Exception as error:  # whatever a forward raises for want of values; the second try tells
                raise_interrupt_behind(error)
        try:
            return forward(*args, **kwargs)
        except Exception as error:
            raise_interrupt_behind(error)
            if original is None:
                raise
            device = next((tensor.device for tensor in original.parameters()), torch.device("cpu"))
            args, kwargs = tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), (args, dict(kwargs)))
            return tree_map_only(torch.Tensor, lambda tensor: tensor.cpu(), original(*args, **kwargs))


def _real(output: Any, kind: type[torch.Tensor], name: str, took: Sequence[bytes]) -> Any:
    """A result with drawn values in place of its tensors of a kind. name, took: what decides which."""
    seed = hashlib.blake2b(name.encode(), digest_size=8)
    for digest in took:
        seed.update(digest)
    generator = torch.Generator().manual_seed(int.from_bytes(seed.digest(), "little") >> 1)
    return tree_map_only(kind, lambda tensor: _drawn(tensor, generator), output)


def _apply(module: nn.Module, change: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
    """What nn.Module._apply does, for .to() and the like, on tensors that torch cannot change in place."""
    for child in module.children() if recurse else ():
        child._apply(change)  # type: ignore[no-untyped-call]
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = nn.Parameter(change(parameter.detach()), requires_grad=False)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = change(buffer)
    return module


def _key(path: str, args: Any, kwargs: Any) -> tuple[Any, ...] | None:
    """Equal for calls with arguments of equal shapes; None where an argument cannot be compared."""
    made: list[Any] = [path, *kwargs]
    for leaf in tree_leaves((args, kwargs)):
        if isinstance(leaf, torch.Tensor):
            made.append((leaf.dtype, tuple(leaf.shape)))
        elif leaf is None or isinstance(leaf, (bool, int, float, str)):
            made.append((type(leaf), leaf))
        else:
            return None
    return tuple(made)


def _drawn(fake: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if not (fake.is_floating_point() or fake.is_complex()):
        return torch.zeros(tuple(fake.shape), dtype=fake.dtype) if isinstance(fake, FakeTensor) else fake
    shape = tuple(fake.shape)
    if fake.numel() > _MOST_DRAWN:
        return torch.randn(shape[-1], generator=generator).to(fake.dtype).expand(shape)
    kind = torch.complex64 if fake.is_complex() else torch.float32
    return torch.randn(shape, generator=generator, dtype=kind).to(fake.dtype)
