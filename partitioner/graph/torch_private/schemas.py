"""What torch's own description of an operator says of it: what it writes to, may share and draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch._ops import OpOverload

__all__ = ["OpOverload", "aliased_argument", "draws_random_numbers", "is_mutated_argument", "plain_callable"]


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


_MAY_ALIAS = {"aten::reshape", "aten::contiguous", "aten::flatten", "aten::to", "aten::dropout"}
