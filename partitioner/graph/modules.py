"""Paths of modules: the one that makes a call, and those that a module is in."""

from __future__ import annotations

import re
from typing import Any

_LINE = re.compile(r'File "(.+)", line (\d+), in .*\n\s*(.*)')


def calling_module(fx_node: Any) -> str:
    """Path of the module whose forward makes the call of an exported torch.fx node; empty for the whole denoiser."""
    stack = fx_node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def caller(fx_node: Any) -> str:
    """The module that makes the call of an exported torch.fx node, in words, with its line where that was noted."""
    place = f"module {calling_module(fx_node) or '<root>'}"
    lines = _LINE.findall(fx_node.meta.get("stack_trace") or "")
    if not lines:
        return place
    file, line, text = lines[-1]
    return f"{place} ({shown_file(file)}:{line}: {text})"


def shown_file(path: str) -> str:
    """A source file as messages name it: one of an installed package from the package on.

    >>> shown_file("/usr/lib/python3/site-packages/diffusers/models/unet.py"), shown_file("/home/me/mine.py")
    ('diffusers/models/unet.py', '/home/me/mine.py')
    """
    return path.rpartition("site-packages/")[2]


def enclosing_modules(module: str) -> list[str]:
    """A module's path and those of the modules that it is in, innermost first.

    >>> enclosing_modules("blocks.0.conv")
    ['blocks.0.conv', 'blocks.0', 'blocks']
    """
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
