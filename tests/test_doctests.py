"""Every example in a docstring gives what it says."""

from __future__ import annotations

import doctest
import importlib
import inspect
from types import ModuleType

import pytest

from tests.support.sources import FILES, ROOT

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = [module for module, path in FILES.items() if ">>> " in path.read_text(encoding="utf-8")]


class Finder(doctest.DocTestFinder):
    """Finds the examples of decorated functions too (a context manager belongs to contextlib otherwise)."""

    def _from_module(self, module: ModuleType | None, object: object) -> bool:
        unwrapped = inspect.unwrap(object) if callable(object) else object
        found: bool = super()._from_module(module, unwrapped)  # type: ignore[misc]
        return found


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # examples name files as they are in a checkout
    found = [test for test in Finder().find(importlib.import_module(module), module) if test.examples]
    assert found, "doctest finds no example where >>> is written"
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    for test in found:
        runner.run(test)
    assert runner.failures == 0, "the examples that failed are printed above"
