"""What a command does on Ctrl-C holds for the process, not only for the function."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("raised", ['exec("raise KeyboardInterrupt")', "raise KeyboardInterrupt"])
def test_exit_code_of_a_process_wherever_it_was_interrupted(tmp_path: Path, raised: str) -> None:
    (tmp_path / "command.py").write_text(
        "import sys\nfrom partitioner.process import interrupted\n"
        f"try:\n    {raised}\nexcept KeyboardInterrupt:\n    sys.exit(interrupted('command'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "command"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "command: interrupted\n")
