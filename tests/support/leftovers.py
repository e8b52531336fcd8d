"""What the whole test run leaves behind in the system, which shall be nothing: processes, shared memory, files.

Everything that tests start inherits a folder for temporary files that is this run's own; so what comes of it is known
by that folder, also where its parent has ended, and what other programs do meanwhile does not matter. The processes
that pytest-xdist divides a run over share the folder, and the one that started them looks once they have ended.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest

from tests.support.warm import end_server

SHARED_MEMORY = Path("/dev/shm")
_DIVIDED = "PYTEST_XDIST_WORKER" in os.environ  # one process of several
_FOLDER = Path(os.environ["TMPDIR"] if _DIVIDED else tempfile.mkdtemp(prefix="test-run-"))
_SHARED_BEFORE = frozenset(os.listdir(SHARED_MEMORY)) if SHARED_MEMORY.is_dir() else frozenset()
_PATIENCE_S = 5.0  # what was told to end has this long

# What is kept on purpose stays where it would be without us: pytest's folders and torch's cache of compiled code.
# Headers that torch precompiles go below the folder for temporary files all the same.
_KEPT_BY_TORCH = "torchinductor_"
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_FOLDER.parent))
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_FOLDER.parent / f"torchinductor_{os.getuid()}"))
os.environ["TMPDIR"] = tempfile.tempdir = str(_FOLDER)


def left_behind() -> dict[str, list[str]]:
    """What this run has left by now, by kind; nothing where there is nothing."""
    found = {
        "processes": _processes(),
        "shared memory": sorted(_shared_memory()),
        "temporary files": sorted(name for name in os.listdir(_FOLDER) if not name.startswith(_KEPT_BY_TORCH)),
    }
    return {kind: names for kind, names in found.items() if names}


def _processes() -> list[str]:
    mark = f"TMPDIR={_FOLDER}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):  # it has ended, or is another user's
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            ours = int(parent) == os.getpid() or mark in (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            # Python's own helper for shared memory ends with this process
            if (
                ours
                and state != "Z"
                and folder.name != str(os.getpid())
                and "multiprocessing.resource_tracker" not in command
            ):
                found.append(f"{folder.name}: {command.strip()[:120]}")
    return found


def _shared_memory() -> frozenset[str]:
    """Segments that are new, and that no process which is not ours has in use."""
    if not SHARED_MEMORY.is_dir():
        return frozenset()
    new = frozenset(os.listdir(SHARED_MEMORY)) - _SHARED_BEFORE
    if not new:
        return new
    mark = f"TMPDIR={_FOLDER}".encode()
    used: set[str] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark not in (folder / "environ").read_bytes() and folder.name != str(os.getpid()):
                maps = (folder / "maps").read_text()
                used.update(name for name in new if f"{SHARED_MEMORY}/{name}" in maps)
    return new - used


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run where something is left, and take its files away."""
    end_server()
    if _DIVIDED:
        return
    until = time.monotonic() + _PATIENCE_S
    while (left := left_behind()) and time.monotonic() < until:
        time.sleep(0.05)
    shutil.rmtree(_FOLDER, ignore_errors=True)
    if left:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.section("left behind", red=True)
            for kind, names in left.items():
                reporter.line(f"{kind}: {'; '.join(names)}", red=True)
