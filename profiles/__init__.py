"""Measured profiles and device data sheets as data, and the code that reads and writes them; free of torch."""

import runpy as _runpy
from pathlib import Path as _Path

_runpy.run_path(str(_Path(__file__).parents[1] / "profiles" / "import_guard.py"))
