"""tests: runs the tests that need a GPU and says what became of each."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import Any

from tools.gpu_suite.part_run import PartRun

PLACES = ("tests/runtime", "tests/partitioner", "tests/tools")
LIMIT_S = 150.0  # after it the tests are interrupted, and what has run counts
TEST_LIMIT_S = 40  # of one test, where pytest-timeout is installed
_SERIAL = re.compile(r"^(tests/.+?) (PASSED|FAILED|ERROR|SKIPPED)", re.MULTILINE)
_PARALLEL = re.compile(r"^\[gw\d+\] \[ *\d+%\] (PASSED|FAILED|ERROR|SKIPPED) (.+?) *$", re.MULTILINE)


def tests(run: PartRun) -> dict[str, Any]:
    """Run them one after the other, the device theirs alone; their output is in this part's log, too."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "--tb=short", "-p", "no:cacheprovider", "--color=no"]
    command += ["--durations=15", "-o", "console_output_style=classic"]
    if importlib.util.find_spec("xdist"):
        command += ["-n", str(min(10, max(2, (os.cpu_count() or 2) - 6)))]  # most of their time is the host's
    if importlib.util.find_spec("pytest_timeout"):
        command += ["--timeout", str(TEST_LIMIT_S)]
    log = run.folder / "tests-output.log"
    with run.alone(LIMIT_S + 20), log.open("w") as output:
        start = time.perf_counter()
        process = subprocess.Popen([*command, *PLACES], stdout=output, stderr=subprocess.STDOUT)
        try:
            status: int | None = process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            status = None
            process.send_signal(signal.SIGINT)  # so that it says what failed
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
        took = time.perf_counter() - start
    results = results_in(log.read_text(errors="replace"))
    failed = [name for name, result in results.items() if result in ("FAILED", "ERROR")]
    return {"status": status, "took_s": took, "counts": dict(Counter(results.values())), "failed": failed}


def results_in(text: str) -> dict[str, str]:
    """Test -> what became of it, as pytest -v has printed it until then.

    >>> results_in("tests/test_a.py::test_b[1 2] PASSED   [ 50%]")
    {'tests/test_a.py::test_b[1 2]': 'PASSED'}
    >>> results_in("[gw3] [ 50%] FAILED tests/test_a.py::test_b ")
    {'tests/test_a.py::test_b': 'FAILED'}
    """
    return dict(_SERIAL.findall(text)) | {name: result for result, name in _PARALLEL.findall(text)}
