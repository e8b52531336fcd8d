"""Rewrites: lines of library functions that torch.export cannot trace, and what computes the same and can be traced.

A rewrite stands in a registry and is in force while a denoiser is traced, and at no other time: a real call, and any
other pipeline, runs the library's own function. It names a function and says which of its lines are to be others; where
those are not in the function, as in another version of the library, it does nothing.
"""

from __future__ import annotations

import functools
import inspect
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from partitioner.graph.diffusers_rewrites import DIFFUSERS_REWRITES

Changes = tuple[tuple[str, str], ...]
REWRITES: dict[str, Changes] = dict(DIFFUSERS_REWRITES)


def register_rewrite(function: str, *changes: tuple[str, str]) -> None:
    """Have lines of a function be others while a denoiser is traced.

    Args:
        function: Its module and name: "package.module:Class.method" or "package.module:function".
        changes: Pairs of lines as they are in the function's source, indented as there, and of those to have instead.
            The latter must compute the same for all arguments.

    >>> register_rewrite("mine.layers:Gate.forward", ("if x.sum() > 0:", "if True:"))
    >>> REWRITES.pop("mine.layers:Gate.forward")
    (('if x.sum() > 0:', 'if True:'),)
    """
    REWRITES[function] = changes


@contextmanager
def rewritten() -> Iterator[None]:
    """Inside the block functions are as their rewrites have them; those of modules that nobody has imported are not."""
    replaced: list[tuple[Any, str, Any]] = []
    try:
        for function, changes in REWRITES.items():
            module, _, path = function.partition(":")
            *owners, name = path.split(".")
            owner = functools.reduce(lambda found, part: getattr(found, part, None), owners, sys.modules.get(module))
            before = vars(owner).get(name) if owner is not None else None
            made = _rewritten(before, changes) if inspect.isfunction(before) else None
            if made is not None:
                replaced.append((owner, name, before))
                setattr(owner, name, made)
        yield
    finally:
        for owner, name, before in reversed(replaced):
            setattr(owner, name, before)


@functools.lru_cache(maxsize=64)
def _rewritten(function: Any, changes: Changes) -> Any:
    """The function with other lines; None where the old ones are not in it."""
    try:
        source = "\n" + textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        return None
    for pair in changes:
        old, new = (textwrap.dedent(lines).strip("\n") for lines in pair)
        for margin in (" " * width for width in range(0, 25, 4)):
            before, after = (f"\n{textwrap.indent(lines, margin)}\n" for lines in (old, new))
            if source.count(before) == 1:
                source = source.replace(before, after)
                break
        else:
            return None
    inner = inspect.unwrap(function)
    made: dict[str, Any] = {}
    name = f"<{inner.__module__}.{inner.__qualname__}, rewritten>"
    code = compile(source, name, "exec", _flags(inner), dont_inherit=True)
    exec(code, inner.__globals__, made)
    return made[inner.__name__]


def _flags(function: Any) -> int:
    """Its __future__ imports."""
    import __future__

    features = (getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
    return sum(flag for flag in set(features) if function.__code__.co_flags & flag)
