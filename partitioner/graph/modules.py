"""Paths of modules: the one that makes a call, and those that a module is in."""

from __future__ import annotations

from typing import Any


def calling_module(fx_node: Any) -> str:
    """Path of the module whose forward makes the call of an exported torch.fx node; empty for the whole denoiser."""
    stack = fx_node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def enclosing_modules(module: str) -> list[str]:
    """A module's path and those of the modules that it is in, innermost first.

    >>> enclosing_modules("blocks.0.conv")
    ['blocks.0.conv', 'blocks.0', 'blocks']
    """
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
