"""What every test shares: no network, one thread, fixed seeds, no CUDA tests where there is no CUDA device.

Tests are marked ``processes`` or ``slow`` (pyproject.toml says what for), by file or one by one; a test with a
parameter that names the transport "processes" is marked here.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from tests.support import warm
from tests.support.leftovers import pytest_sessionfinish as pytest_sessionfinish  # pytest finds it here

if TYPE_CHECKING:
    from tools.trace_once import Traces

# Set before anything imports torch or huggingface_hub, and inherited by the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's background jobs ignore Ctrl-C, and so would the programs that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("project", deadline=None, derandomize=True)
hypothesis.settings.load_profile("project")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Spare what is imported and collected, and stays, from being looked through: millions of objects, every time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Have ``-n`` divide the tests once, so that most fixtures of files are made once, and even out at the end.

    By itself it hands out ever fewer tests at a time: most files of the last third would be in both processes.
    """
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by mark
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {}).values()
        if any(isinstance(value, str) and value.split()[:1] == ["processes"] for value in parameters):
            item.add_marker(pytest.mark.processes)
    # The tests in this folder itself run whole programs: begun last, they would keep one of two processes waiting.
    here = Path(__file__).parent
    items.sort(key=lambda item: item.path.parent != here or item.get_closest_marker("processes") is None)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.hookimpl(tryfirst=True)  # before fixtures that start ranks
def pytest_runtest_setup(item: pytest.Item) -> None:
    processes = item.get_closest_marker("processes")
    if processes is not None:
        forked = processes.kwargs.get("forked", sys.platform == "linux") and item.get_closest_marker("gpu") is None
        warm.fork_processes(forked)


@pytest.fixture(scope="session")
def traces() -> Traces:
    """What is traced in the tests with ``trace_once``."""
    from tools.trace_once import Traces

    return Traces()


@pytest.fixture(scope="module")
def trace_once(traces: Traces) -> Iterator[None]:
    """For ``usefixtures``: engines and plans of a test file share their traces with those of all such files."""
    from tools.trace_once import traced_once

    with traced_once(plans=True, known=traces):
        yield
