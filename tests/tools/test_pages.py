"""What pages that tools make say of their run."""

from __future__ import annotations

import pytest
import torch
from diffusers.utils import logging

from tools.pages import be_quiet, environment, versions


def test_a_page_names_versions_and_the_command() -> None:
    made = environment("tools.features", ["--only", "a b"])
    assert made["command"] == "`python -m tools.features --only 'a b'`"
    assert f"torch {torch.__version__.split('+')[0]}" in made["versions"]
    assert versions(["no-such-package"]).endswith("no no-such-package")


def test_libraries_give_no_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    before = logging.get_verbosity()
    be_quiet()
    assert logging.get_verbosity() == logging.ERROR
    logging.set_verbosity(before)
    logging.enable_progress_bar()
