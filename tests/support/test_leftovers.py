"""The check after the whole run fails it where something is left, and only there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SLEEPER = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(15)'])"

LEFT = {
    "nothing": ("pass", ""),
    "what ends by itself": (f"subprocess.Popen([sys.executable, '-c', {'import time; time.sleep(1)'!r}])", ""),
    "what torch keeps": ("os.mkdir(os.path.join(tempfile.gettempdir(), 'torchinductor_somebody'))", ""),
    "a process": (f"subprocess.run([sys.executable, '-c', {SLEEPER!r}])", "processes: "),  # its parent has ended
    "a file": ("tempfile.mkstemp(prefix='precious')", "temporary files: precious"),
    "shared memory": ("open('/dev/shm/{name}', 'x')", "shared memory: {name}"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
@pytest.mark.parametrize(
    ("what", "options"),
    [
        *(pytest.param(what, "", marks=[] if what == "nothing" else [pytest.mark.slow]) for what in LEFT),
        pytest.param("a process", "-n 2", marks=pytest.mark.slow),
    ],
)
def test_what_is_left_fails_the_run(tmp_path: Path, what: str, options: str) -> None:
    name = f"test-leftovers-{os.getpid()}"
    code, words = (text.replace("{name}", name) for text in LEFT[what])
    (tmp_path / "conftest.py").write_text("from tests.support.leftovers import pytest_sessionfinish\n")
    (tmp_path / "test_it.py").write_text(f"import os, subprocess, sys, tempfile\ndef test_it():\n    {code}\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_XDIST_WORKER"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options.split(), str(tmp_path)],
            cwd=tmp_path,
            env={**environment, "PYTHONPATH": str(ROOT), "PYTEST_DEBUG_TEMPROOT": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert "1 passed" in done.stdout, done.stdout + done.stderr
        assert done.returncode == bool(words), done.stdout
        assert ("left behind" in done.stdout) == bool(words)
        assert words in done.stdout
    finally:
        Path("/dev/shm", name).unlink(missing_ok=True)
