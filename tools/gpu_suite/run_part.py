"""Runs one part of the suite in this process: tests, traces, or times (ms, medians) of one denoiser.

    python -m tools.gpu_suite.run_part components --denoiser sd15 --device cuda:0 --output FOLDER

Writes FOLDER/PART-DENOISER.json and prints it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from profiles.json_files import write_atomic
from tools.gpu_suite.denoisers import graphs_of
from tools.gpu_suite.engine_steps import engine
from tools.gpu_suite.shares import concurrency
from tools.gpu_suite.times import compiled_whole, components, profile


def traces(names: Sequence[str], folder: Path) -> dict[str, Any]:
    """Trace all denoisers, several at a time; the number of nodes of each, or why it cannot be traced."""
    start = time.perf_counter()
    found: dict[str, Any] = {}
    with ProcessPoolExecutor(max_workers=min(len(names), 8), mp_context=get_context("spawn")) as pool:
        for name, under_way in {name: pool.submit(graphs_of, name, folder) for name in names}.items():
            error = under_way.exception()
            found[name] = len(under_way.result().whole.nodes) if error is None else f"{type(error).__name__}: {error}"
    return {"seconds": time.perf_counter() - start, "nodes": found}


def tests(folder: Path) -> dict[str, Any]:
    """Run the tests that need a GPU and count what became of them."""
    report = folder / "tests.xml"
    places = ["tests/runtime", "tests/partitioner", "tests/tools"]
    command = ["pytest", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}", *places]
    status = subprocess.run([sys.executable, "-m", *command], check=False).returncode
    found = ElementTree.parse(report).getroot().find("testsuite")
    assert found is not None
    counts = {what: int(found.get(what, 0)) for what in ("tests", "failures", "errors", "skipped")}
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in found.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return {"status": status, **counts, "failed": failed}


PARTS: dict[str, Callable[[str, str, Path], dict[str, Any]]] = {
    "profile": profile,
    "components": components,
    "concurrency": concurrency,
    "engine": engine,
    "compiled": compiled_whole,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one part and write its document; exit code 0."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_suite.run_part", description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("tests", "traces", *PARTS))
    parser.add_argument("--denoiser", required=True, metavar="NAME", help="for traces: several, with commas between")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    if options.part == "tests":
        document = tests(options.output)
    elif options.part == "traces":
        document = traces(options.denoiser.split(","), options.output)
    else:
        document = PARTS[options.part](options.denoiser, options.device, options.output)
    name = f"{options.part}-{options.denoiser}.json" if options.part in PARTS else f"{options.part}.json"
    text = json.dumps(document, indent=1)
    write_atomic(options.output / name, (text + "\n").encode(), overwrite=True)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
