"""The small pipelines of tools.small_pipelines, by the name that tests know them by."""

from __future__ import annotations

from tools.small_pipelines import MAKERS, call, load, saved, stable_diffusion

__all__ = ["MAKERS", "call", "load", "saved", "stable_diffusion"]
