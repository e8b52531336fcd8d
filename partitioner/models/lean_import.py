"""lean_import: diffusers without the packages that a denoiser without weights has no use for, in half the time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Text encoders, adapters, quantised weights, and the samplers' rarer noise levels.
_UNUSED = ("bitsandbytes", "gguf", "optimum", "peft", "scipy", "torchao", "transformers")


def import_lean() -> None:
    """Import diffusers' models as if those packages were not installed.

    Only for a process that plans by a model's name and ends: diffusers has no pipelines then, and goes on to have none.
    """
    with _hidden(*_UNUSED):
        import diffusers.models.transformers
        import diffusers.models.unets  # noqa: F401 # which import what all models share


@contextmanager
def _hidden(*packages: str) -> Iterator[None]:
    """Inside the block, packages that have not been imported yet look as if they were not installed."""
    hidden = [package for package in packages if package not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type] # None: Python's way to say so
    try:
        yield
    finally:
        for package in hidden:
            del sys.modules[package]
