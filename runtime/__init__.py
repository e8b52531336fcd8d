"""Run time: executes a plan on several devices, and puts the engine in a diffusers pipeline.

``Engine``, ``EngineOptions`` and ``parallelize`` are loaded when they are first used.
"""

from __future__ import annotations

import importlib as _importlib
import runpy as _runpy
from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.engine import Engine
    from runtime.options import EngineOptions
    from runtime.pipeline import parallelize

_runpy.run_path(str(_Path(__file__).parents[1] / "profiles" / "import_guard.py"))

__all__ = ["Engine", "EngineOptions", "parallelize"]

_HOMES = {
    "Engine": "runtime.engine",
    "EngineOptions": "runtime.options",
    "parallelize": "runtime.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_importlib.import_module(_HOMES[name]), name)
