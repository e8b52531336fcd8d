"""Compile time: a denoiser's name or module to a plan; knows nothing of processes.

``compile``, ``trace`` and ``Plan`` are loaded when they are first used, so that importing the package stays free
of torch.
"""

from __future__ import annotations

import importlib as _importlib
import runpy as _runpy
import sys as _sys
from pathlib import Path as _Path
from types import ModuleType as _ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from partitioner.plan import Plan
    from partitioner.planner import compile
    from partitioner.trace import trace

_runpy.run_path(str(_Path(__file__).parents[1] / "profiles" / "siblings.py"))

__version__ = "0.1.0"
__all__ = ["Plan", "compile", "trace"]

_HOMES = {"Plan": "partitioner.plan", "compile": "partitioner.planner"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_importlib.import_module(_HOMES[name]), name)


class _Package(_ModuleType):
    """Keeps ``partitioner.trace`` the function, which importing the submodule of that name would replace."""

    @property
    def trace(self) -> Any:
        return _importlib.import_module("partitioner.trace").trace

    @trace.setter
    def trace(self, _submodule: _ModuleType) -> None:
        """The import system sets a package's attribute to the submodule that it has imported."""


_sys.modules[__name__].__class__ = _Package
