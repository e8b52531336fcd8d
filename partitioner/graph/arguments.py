"""Arguments of a denoiser call: bound to names, flattened to paths, each with its role."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from partitioner.errors import TraceError
from partitioner.graph.ir import Argument, Role


def flatten_arguments(arguments: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Argument]]:
    """Take nested keyword arguments apart into tensors and literals, by path.

    Args:
        arguments: Tensors, numbers, strings, None, and dicts and lists of them, by name.

    Returns:
        The tensors by path, and the literals by path, both in order.

    Raises:
        TraceError: An argument is or holds something else.

    >>> flatten_arguments({"extra": {"scale": 0.5, "kind": ["a", None]}})
    ({}, {'extra.scale': 0.5, 'extra.kind.0': 'a', 'extra.kind.1': None})
    """
    tensors: dict[str, torch.Tensor] = {}
    literals: dict[str, Argument] = {}

    def visit(path: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            tensors[path] = value
        elif isinstance(value, Mapping):
            for key, item in value.items():
                visit(f"{path}.{key}", item)
        elif isinstance(value, (list, tuple)):
            for position, item in enumerate(value):
                visit(f"{path}.{position}", item)
        elif value is None or isinstance(value, (bool, int, float, str)):
            literals[path] = value
        else:
            raise TraceError(
                f"argument {path} is a {type(value).__name__}; expected tensors, numbers, strings, None, "
                "or dicts and lists of them"
            )

    for key, value in arguments.items():
        visit(key, value)
    return tensors, literals


def role_of(path: str, roles: Mapping[str, str | Role]) -> Role:
    """The role that an argument has: that of the longest prefix of its path in ``roles``.

    Raises:
        TraceError: No prefix is there.

    >>> role_of("extra.ids", {"extra": "prompt", "x": "latent"}).name
    'PROMPT'
    """
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        role = roles.get(".".join(parts[:length]))
        if role is not None:
            return role if isinstance(role, Role) else Role.parse(role)
    raise TraceError(
        f"argument {path} has no role; add it to roles as 'latent' (the noisy sample), 'timestep', 'prompt' "
        "(stays the same during a trajectory) or 'constant'"
    )


def bind_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``module(*args, **kwargs)`` by name; those that ``**`` takes stand among the others.

    Raises:
        TypeError: The module cannot be called so; the message is that of the call.
    """
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    arguments = dict(bound.arguments)
    for name, parameter in inspect.signature(module.forward).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(arguments.pop(name, {}))
    return arguments
