"""Benchmarks, quality measurements, pictures and recordings; nothing else imports it."""

import runpy as _runpy
from pathlib import Path as _Path

_runpy.run_path(str(_Path(__file__).parents[1] / "profiles" / "import_guard.py"))
