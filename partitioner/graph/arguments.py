"""Arguments of a denoiser call: bound to names, taken apart into values by path, each with its role."""

from __future__ import annotations

import enum
import inspect
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy
import torch
from torch import nn

from partitioner.errors import TraceError
from partitioner.graph.nesting import ContainerKind
from partitioner.graph.nodes import DTYPE_BYTES, Argument, Role
from partitioner.graph.tensor_meta import name_of_dtype

_KINDS: dict[type, ContainerKind] = {list: "list", tuple: "tuple", torch.Size: "tuple", dict: "dict",
                                     OrderedDict: "dict"}  # fmt: skip
_MAX_DEPTH = 32


@dataclass(frozen=True)
class FlatArguments:
    """A call's arguments, taken apart.

    Attributes:
        values: Tensors and literals by path, in the order in which they stand in the call.
        containers: Kinds of the lists, tuples and empty dicts, by path; all other containers are dicts, which the paths
            of their entries show.
    """

    values: dict[str, Any]
    containers: dict[str, ContainerKind]

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors, by path."""
        return {path: value for path, value in self.values.items() if isinstance(value, torch.Tensor)}

    @property
    def literals(self) -> dict[str, Argument]:
        """Numbers, strings and None, by path."""
        return {path: value for path, value in self.values.items() if not isinstance(value, torch.Tensor)}


def flatten_arguments(arguments: Mapping[str, Any]) -> FlatArguments:
    """Take nested keyword arguments apart into tensors and literals, by path.

    Numbers of numpy become Python's, torch.Size becomes a tuple, OrderedDict a dict.

    Args:
        arguments: Tensors, numbers, strings, None, and dicts, lists and tuples of them, by name.

    Raises:
        TraceError: An argument is or holds something else, or a dict has a key that no path can name.

    >>> flat = flatten_arguments({"extra": {"scale": 0.5, "kind": ["a", None]}})
    >>> flat.values, flat.containers
    ({'extra.scale': 0.5, 'extra.kind.0': 'a', 'extra.kind.1': None}, {'extra.kind': 'list'})
    """
    flat = FlatArguments({}, {})
    for name, value in arguments.items():
        _flatten(name, value, flat, 0)
    return flat


def _flatten(path: str, value: Any, flat: FlatArguments, depth: int) -> None:
    kind = _KINDS.get(type(value))
    if depth > _MAX_DEPTH:
        raise TraceError(f"argument {path.split('.')[0]} is nested more than {_MAX_DEPTH} deep, or holds itself")
    if isinstance(value, torch.Tensor):
        if name_of_dtype(value) not in DTYPE_BYTES:
            raise TraceError(
                f"argument {path} is a tensor of {value.dtype}, which a plan cannot carry; pass one of "
                f"{', '.join(DTYPE_BYTES)}"
            )
        flat.values[path] = value
    elif kind == "dict":
        if not value:
            flat.containers[path] = kind
        for key, item in value.items():
            if not isinstance(key, str) or not key or "." in key:
                raise TraceError(
                    f"argument {path} has the key {key!r}; its paths would be ambiguous: keys must be strings without "
                    "dots"
                )
            _flatten(f"{path}.{key}", item, flat, depth + 1)
    elif kind is not None:
        flat.containers[path] = kind
        for position, item in enumerate(value):
            _flatten(f"{path}.{position}", item, flat, depth + 1)
    elif isinstance(value, numpy.generic):
        _flatten(path, value.item(), flat, depth + 1)
    elif value is None or (isinstance(value, (bool, int, float, str)) and not isinstance(value, enum.Enum)):
        flat.values[path] = value
    else:
        raise TraceError(
            f"argument {path} is a {type(value).__module__}.{type(value).__qualname__}; expected tensors, numbers, "
            "strings, None, or plain dicts, lists and tuples of them: pass its value or its parts as such"
        )


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
        f"argument {path} has no role; add it to roles as 'latent' (the noisy sample), 'timestep', 'step' (given anew "
        "at every step), 'prompt' (stays the same during a trajectory) or 'constant'"
    )


_Forms = dict[tuple[Any, ...], list[tuple[str, Any, bool]]]


def forward_signature(module: nn.Module) -> inspect.Signature:
    """What a module's forward takes; its class's, where a wrapper on the instance takes anything (``*args``)."""
    return _forward_taken(module)[0]


def _forward_taken(module: nn.Module) -> tuple[inspect.Signature, _Forms]:
    taken = _taken_by(module.forward)
    if "forward" in vars(module) and any(p.kind is p.VAR_POSITIONAL for p in taken[0].parameters.values()):
        return _taken_by(type(module).forward.__get__(module))
    return taken


def _taken_by(forward: Any) -> tuple[inspect.Signature, _Forms]:
    """What a method or function takes, worked out once, and how calls of it were bound: every call needs it."""
    function = getattr(forward, "__func__", forward)
    known = _TAKEN[function is not forward]
    try:
        found = known.get(function)
        if found is None:
            found = known[function] = inspect.signature(forward), {}
    except TypeError:  # of a kind that nothing can refer to weakly
        return inspect.signature(forward), {}
    return found


# by whether the first parameter is bound: function -> what it takes
_TAKEN: tuple[WeakKeyDictionary[Any, tuple[inspect.Signature, _Forms]], ...] = (
    WeakKeyDictionary(),
    WeakKeyDictionary(),
)
_MOST_FORMS = 64  # of calls of one function


def bind_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``module(*args, **kwargs)`` by name; those that ``**`` takes stand among the others.

    An argument that is None, and None where it is not given, is left out.

    Raises:
        TypeError: The module cannot be called so; the message is that of the call.
    """
    signature, forms = _forward_taken(module)
    form = len(args), *kwargs
    if form not in forms:
        if len(forms) == _MOST_FORMS:
            forms.clear()
        forms[form] = _bound(signature, len(args), list(kwargs))
    given = (*args, *kwargs.values())
    return {
        name: given[place] for name, place, may_be_none in forms[form] if not may_be_none or given[place] is not None
    }


def _bound(signature: inspect.Signature, count: int, names: Sequence[str]) -> list[tuple[str, Any, bool]]:
    """How a call of so many arguments, and others of these names, is bound.

    Returns:
        Of each parameter that is given its name, its place among all arguments of the call (of what ``*`` takes a slice
        of them), and whether it is None where it is not given.
    """
    places = signature.bind(*range(count), **dict(zip(names, range(count, count + len(names)), strict=True))).arguments
    found: list[tuple[str, Any, bool]] = []
    for name, parameter in signature.parameters.items():
        if name not in places:
            continue
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            found += [(other, place, False) for other, place in places[name].items()]
        elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            found.append((name, slice(places[name][0], count), False))
        else:
            found.append((name, places[name], parameter.default is None))
    return found
