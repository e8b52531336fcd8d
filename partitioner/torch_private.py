"""The one place that touches torch's private names, so that a new release is met in one file."""

from __future__ import annotations

from typing import Any

from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_unflatten

__all__ = ["FakeTensorMode", "OpOverload", "aliased_argument", "is_mutated_argument", "tree_unflatten"]


def is_mutated_argument(target: Any, position: int) -> bool:
    """Whether an operator writes to its positional argument (detach_ changes no element)."""
    if not isinstance(target, OpOverload) or target._schema.name == "aten::detach_":
        return False
    arguments = target._schema.arguments
    if position >= len(arguments):
        return False
    alias = arguments[position].alias_info
    return alias is not None and alias.is_write


def aliased_argument(target: Any) -> int | None:
    """Position of the argument whose storage the operator's output may share, or None.

    reshape, contiguous, flatten and the casts return their argument itself where they can, without saying so in
    their schema.
    """
    if not isinstance(target, OpOverload):
        return 0  # operator.getitem
    for position, argument in enumerate(target._schema.arguments):
        if argument.alias_info is not None:
            return position
    return 0 if target._schema.name in _MAY_ALIAS else None


_MAY_ALIAS = {"aten::reshape", "aten::contiguous", "aten::flatten", "aten::to", "aten::dropout"}
