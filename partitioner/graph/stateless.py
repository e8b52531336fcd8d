"""Whether a denoiser's forward does the same at every call, so that one trace of it stands for all calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from partitioner.errors import TraceError
from partitioner.graph.module_state import Difference, ModuleState
from partitioner.graph.torch_private.fakes import fake_mode_of
from partitioner.graph.torch_private.trees import tree_leaves, tree_map_only
from partitioner.graph.trace_failure import trace_failure, why_failed
from partitioner.process import raise_interrupt_behind

_WHAT_TO_DO = (
    "A denoiser is traced once for all its calls, so each must do the same: take that processor, hook or cache off for "
    "the run, or have it compute from the call's arguments"
)


def check_stateless(module: nn.Module, example_inputs: Mapping[str, Any], model: str) -> None:
    """Call the module twice on tensors without storage, and refuse it if the second call is another than the first.

    What is computed once and kept, such as a table of positions, makes no difference to what is done with the
    arguments, and passes. The module is left as it was.

    Args:
        module: The denoiser.
        example_inputs: Keyword arguments of a call.
        model: What errors call it.

    Raises:
        TraceError: A call changes what later calls depend on, or two calls do different things; it says where.
    """
    state = ModuleState(module)
    changes: list[Difference] = []
    tensors = [*tree_leaves(dict(example_inputs)), *state.tensors]
    try:
        with fake_mode_of(tensors) as fakes, torch.no_grad():
            arguments = tree_map_only(torch.Tensor, fakes.from_tensor, dict(example_inputs))
            first = _Operations()
            with first:
                first.follow(arguments)
                module(**arguments)
            between = ModuleState(module)
            changes = state.differences()
            kept = any(map(first.is_followed, between.tensors))
            second = _Operations()
            with second:
                second.follow(arguments)
                module(**arguments)
            changes_again = between.differences()
    except Exception as error:
        raise_interrupt_behind(error)
        if not changes:
            raise trace_failure(error, module, "", model) from error
        raise TraceError(
            f"{model} cannot be traced twice, for the first call changes {listed(changes)} ({why_failed(error)}). "
            f"{_WHAT_TO_DO}"
        ) from error
    finally:
        state.restore()
    if changes_again:
        raise TraceError(f"every call of {model} changes {listed(changes_again)}. {_WHAT_TO_DO}")
    if kept or first.done != second.done:
        cause = f"the first one changes {listed(changes)}" if changes else f"code takes part of {state.foreign[0]}"
        raise TraceError(f"two equal calls of {model} do different things: {cause}. {_WHAT_TO_DO}")


def listed(differences: Sequence[Difference]) -> str:
    """The first two, and how many more there are."""
    more = f" and {len(differences) - 2} more" if len(differences) > 2 else ""
    return ", ".join(map(str, differences[:2])) + more


class _Operations(TorchFunctionMode):
    """Notes what is done with some tensors, and with what is made from them.

    done: by operation, its function and its arguments, tensors by their shapes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, str]] = []
        self._followed: dict[int, torch.Tensor] = {}

    def follow(self, values: Any) -> None:
        """Note from now on what is done with the tensors among the values."""
        self._followed |= {id(leaf): leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)}

    def is_followed(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is one of those, or made from them."""
        return id(tensor) in self._followed

    def __torch_function__(
        self, func: Callable[..., Any], _types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        given = [args, dict(kwargs or {})]
        if any(isinstance(leaf, torch.Tensor) and id(leaf) in self._followed for leaf in tree_leaves(given)):
            shapes = tree_map_only(torch.Tensor, lambda tensor: (tuple(tensor.shape), tensor.dtype), given)
            self.done.append((func, repr(shapes)))
            self.follow(made)
        return made
