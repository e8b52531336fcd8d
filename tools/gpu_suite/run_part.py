"""Runs one part of the suite in this process and writes its document.

    python -m tools.gpu_suite.run_part engine threads 4 --denoiser sdxl --device cuda:0 --output FOLDER

Writes FOLDER/NAME.json and prints it; as long as it runs, what it has found is in FOLDER/NAME.partial.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from profiles.json_files import write_atomic
from tools.command import command
from tools.gpu_suite.card import Card
from tools.gpu_suite.part_run import PartRun

MODULES = {  # kind -> the module with the function of its name; only that one is imported
    "environment": "environment",
    "tests": "gpu_tests",
    "profile": "times",
    "half": "times",
    "eager": "times",
    "components": "times",
    "compiled": "compiled",
    "concurrency": "shares",
    "engine": "engine_steps",
    "pipeline": "pipeline_runs",
}


@command("tools.gpu_suite.run_part")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run one part and write its document; exit code 0."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_suite.run_part", description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=tuple(MODULES))
    parser.add_argument("choices", nargs="*", help="of an engine: transport and ranks; of a pipeline: its name")
    parser.add_argument("--name", help="of its document (default: made of its kind, denoiser and choices)")
    parser.add_argument("--denoiser", required=True, metavar="NAME")
    parser.add_argument("--device", default="cuda:0", help="cuda:0 (default) or cpu")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER")
    parser.add_argument(
        "--turn", type=int, default=0, help="of several parts at once, smaller ones have the device first"
    )
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    name = options.name or "-".join((options.kind, options.denoiser, *options.choices))
    partial = options.output / f"{name}.partial.json"
    start = time.perf_counter()

    def save(document: dict[str, Any]) -> None:
        write_atomic(partial, _text(document).encode(), overwrite=True)

    run = PartRun(
        options.denoiser, tuple(options.choices), options.device, options.output,
        Card(options.output, options.turn), save,
    )  # fmt: skip
    function = getattr(import_module(f"tools.gpu_suite.{MODULES[options.kind]}"), options.kind)
    document = {**function(run), "seconds": round(time.perf_counter() - start, 1)}
    write_atomic(options.output / f"{name}.json", _text(document).encode(), overwrite=True)
    partial.unlink(missing_ok=True)
    print(_text(document), end="")
    return 0


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1) + "\n"


if __name__ == "__main__":
    sys.exit(main())
