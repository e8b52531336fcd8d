"""lean_import: names are planned without packages that no denoiser without weights needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from partitioner.models.lean_import import _hidden

UNUSED = """
import sys
from partitioner.models.lean_import import import_lean
import_lean()
from partitioner.models.find_spec import model_spec
spec = model_spec("sd15")
spec.load()
print([name for name in ("peft", "scipy", "torchao", "transformers") if name in sys.modules])
import transformers
"""


@pytest.mark.slow
def test_what_is_not_needed_is_not_imported_and_can_be_later() -> None:
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", UNUSED], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_what_was_imported_before_stays() -> None:
    with _hidden("json", "no_such_package"):
        assert sys.modules["json"] is not None
        assert sys.modules["no_such_package"] is None
    assert "no_such_package" not in sys.modules
