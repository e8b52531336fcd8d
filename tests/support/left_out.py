"""Modules of which one line is left out or changed, to see that somebody misses it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def lines(module: ModuleType, *changes: tuple[str, str]) -> list[Any]:
    """Parameters of a test: the module, a text that stands in it once, and what is to stand there instead."""
    return [pytest.param(module, line, to, id=f"{module.__name__.split('.')[-1]}: {line}") for line, to in changes]


def changed(module: ModuleType, line: str, to: str) -> ModuleType:
    """The module anew, with something else in place of a text that stands in it once."""
    source = Path(str(module.__file__)).read_text()
    assert source.count(line) == 1
    made = ModuleType(module.__name__)
    exec(source.replace(line, to), made.__dict__)
    return made
