"""Compile time: a denoiser's name or module to a plan; knows nothing of processes.

``compile``, ``trace``, ``Plan`` and the like are loaded when they are first used, so that importing the package stays
free of torch.
"""

from __future__ import annotations

import importlib as _importlib
import runpy as _runpy
from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any

from partitioner._version import __version__ as __version__

if TYPE_CHECKING:
    from partitioner.graph.export import trace
    from partitioner.graph.rewrites import register_rewrite
    from partitioner.models.guess_roles import record_calls
    from partitioner.plan.pipeline_plans import PipelinePlans, load_plans
    from partitioner.plan.plan import Plan
    from partitioner.planning.compile import compile

_runpy.run_path(str(_Path(__file__).parents[1] / "profiles" / "import_guard.py"))

__all__ = ["PipelinePlans", "Plan", "compile", "load_plans", "record_calls", "register_rewrite", "trace"]

_HOMES = {
    "PipelinePlans": "partitioner.plan.pipeline_plans",
    "Plan": "partitioner.plan.plan",
    "compile": "partitioner.planning.compile",
    "load_plans": "partitioner.plan.pipeline_plans",
    "record_calls": "partitioner.models.guess_roles",
    "register_rewrite": "partitioner.graph.rewrites",
    "trace": "partitioner.graph.export",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_importlib.import_module(_HOMES[name]), name)
