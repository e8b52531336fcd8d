"""Fixtures of the runtime's tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small Stable Diffusion pipeline; who changes it copies it before."""
    from tests.support import pipelines  # imports torch, which only some files need

    return pipelines.saved("stable_diffusion", tmp_path_factory.mktemp("saved"))
