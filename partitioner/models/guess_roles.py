"""record_calls and guess_roles: what a module's arguments are, from consecutive calls of it in any sampling loop."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from partitioner.errors import UsageError
from partitioner.graph.arguments import bind_arguments
from partitioner.graph.nodes import Role
from partitioner.graph.tensor_meta import name_of_dtype
from partitioner.graph.torch_private.trees import tree_map_only
from partitioner.models.inputs import Inputs, roles_in, zeros
from partitioner.models.seen_calls import roles_of, see
from partitioner.models.stand_ins import StandIns


@contextmanager
def record_calls(module: nn.Module) -> Iterator[list[dict[str, Any]]]:
    """Inside the block, note the arguments of every call of a module; two steps of a sampling loop are enough.

    Yields:
        The calls so far, each its arguments by name, with copies of the tensors.

    >>> layer = torch.nn.Linear(2, 2)
    >>> with torch.no_grad(), record_calls(layer) as calls:
    ...     result = layer(layer(torch.ones(1, 2)))
    >>> [list(call) for call in calls]
    [['input'], ['input']]
    """
    calls: list[dict[str, Any]] = []

    def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = bind_arguments(module, args, kwargs)
        calls.append(tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), arguments))

    hook = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


def guess_roles(
    module: nn.Module, calls: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, Role], str, int]:
    """Arguments to trace a module with and the role of each, from consecutive calls.

    What changes as a whole and is shaped as the output is the latent; what changes as one number the timestep; what
    else changes is given anew at every step; and what stays, or takes turns as in guidance's two calls, is the prompt.

    Args:
        module: The module, which is not run where its output's shape can be found without.
        calls: Arguments of consecutive calls, of two steps at least.

    Returns:
        Example arguments, the roles by path, the roles in words, and how often a step calls the module.

    Raises:
        UsageError: The calls are too few, or show no latent.
    """
    if len(calls) < 2:
        raise UsageError(
            "roles can be guessed from two calls or more and were not given: pass the arguments of consecutive calls, "
            "as partitioner.record_calls(module) notes them, or roles"
        )
    with torch.no_grad():
        output = StandIns().twin(module, "module")(**calls[0])
    seen = roles_of([see(module, (), call, output) for call in calls])
    dtype = next((name_of_dtype(p) for p in module.parameters() if p.is_floating_point()), "float32")
    inputs: Inputs = seen.inputs(dtype)
    example = zeros(inputs, dtype)
    if "return_dict" in inspect.signature(module.forward).parameters:
        example["return_dict"] = False
    return example, dict(roles_in(inputs)), str(seen), seen.calls_per_step
