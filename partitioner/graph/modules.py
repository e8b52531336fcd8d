"""Module paths: the modules that a module is in."""

from __future__ import annotations


def enclosing_modules(module: str) -> list[str]:
    """A module's path and those of the modules that it is in, innermost first."""
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
