"""FakesWithConstants: a fake mode that keeps the values of what is made of numbers alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from partitioner.graph.torch_private.fakes import FakeTensor, FakeTensorMode
from partitioner.graph.torch_private.schemas import OpOverload, draws_random_numbers, is_mutated_argument
from partitioner.graph.torch_private.trees import tree_leaves


def real_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """A tensor with values: itself, or what a fake one was made from; None where its values are not known."""
    real = getattr(tensor, "constant", None) if isinstance(tensor, FakeTensor) else tensor
    if real is None or real.is_meta or hasattr(real, "__tensor_flatten__"):
        return None
    return None if hasattr(real.untyped_storage(), _UNKNOWN) else real


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
