"""Measures cell by cell how close the engine comes to sequential: sampler x guidance x steps x denoiser x components.

    python -m tools.quality.cells --results cells.json --jobs 2 --write docs/results/cells.md
    python -m tools.quality.cells --results cells.json --only ddim dpmpp --guidance 7.5 --steps 20 --ways 1x2,2x2

Every cell has the engine's pictures, with as many in a call as a user makes, beside fewer sequential steps in the time
that the engine really took. Cells are kept in the results file as soon as their case is done, and not measured again by
the next run. They come breadth first: the first guidance scale that is named for all samplers, then the next one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import multiprocessing.connection
import os
import shlex
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from partitioner.errors import UsageError
from tools.command import command
from tools.pages import versions
from tools.pictures.pipelines import DENOISERS
from tools.quality.cells_calibration import calibrate_cells
from tools.quality.cells_cases import (
    FEW_STEP_SAMPLERS,
    FLOW_SAMPLERS,
    SAMPLERS,
    Case,
    cases_of,
    key_of,
    parse_way,
    ways_of,
)
from tools.quality.cells_file import Results, is_done, read_results, write_results
from tools.quality.cells_page import document_page
from tools.quality.cells_runs import CellSettings, close_bench, measure_case
from tools.quality.cells_summary import margin, measured, summary, worst

Task = tuple[Case, frozenset[str]]  # and the keys of its cells that are measured


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    made = argparse.ArgumentParser(prog="python -m tools.quality.cells", description=__doc__.split("\n", 1)[0])
    add = made.add_argument
    add("--results", type=Path, required=True, metavar="FILE", help="JSON; cells that it holds are kept")
    add("--write", type=Path, metavar="FILE", help="write the results as a page of Markdown")
    add(
        "--calibrate",
        type=Path,
        metavar="FILE",
        help="add the cells of the cases that are named here to a quality profile, which partition-model reads",
    )
    add("--denoisers", type=_names, default=list(DENOISERS), metavar="LIST", help="default: " + ",".join(DENOISERS))
    every = [*SAMPLERS, *FLOW_SAMPLERS, *FEW_STEP_SAMPLERS]
    add("--only", nargs="+", default=every, metavar="SAMPLER", help="samplers (default: all)")
    add("--guidance", type=_numbers, default=[7.5, 3.0, 5.0, 1.0, 10.0], metavar="LIST", help="7.5,3,5,1,10")
    add("--steps", type=_counts, default=[20, 28, 50, 30], metavar="LIST", help="20,28,50,30; lcm and tcd have 4 and 8")
    add("--ways", type=_names, default=["1x2", "2x2", "1x3", "1x4"], metavar="LIST", help="1x2,2x2,1x3,1x4")
    add(
        "--quality",
        type=_names,
        default=["default", "off"],
        metavar="LIST",
        help="of the engine (default: default,off)",
    )
    add("--samples", type=int, default=64, metavar="N", help="pictures of a cell (default: 64)")
    add("--deep-samples", type=int, default=16, metavar="N", help="of more than two components (default: 16)")
    add("--chunk", type=int, default=4, metavar="N", help="pictures in a call under the engine (default: 4)")
    add("--jobs", type=int, default=1, metavar="N", help="processes of one thread each (default: 1)")
    add("--minutes", type=float, default=None, metavar="X", help="begin no case after so long")
    add("--again", action="store_true", help="measure also what the results have")
    return made


def _names(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _counts(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def tasks_of(options: argparse.Namespace, settings: CellSettings, results: Results) -> list[Task]:
    """The cases that have cells to be measured."""
    tasks = []
    for case in cases_of(options.denoisers, options.only, options.guidance, options.steps):
        wanted = frozenset(
            key_of(case, way, quality)
            for way in ways_of(case, settings.ways)
            for quality in settings.qualities
            if options.again or not is_done(results, key_of(case, way, quality), settings.samples_of(way))
        )
        if wanted:
            tasks.append((case, wanted))
    return tasks


def measure(
    tasks: Sequence[Task], settings: CellSettings, jobs: int, minutes: float | None
) -> Iterator[dict[str, dict[str, Any]]]:
    """The cells of cases, as soon as one is done. minutes: no case begins after so long."""
    end = None if minutes is None else time.monotonic() + 60 * minutes
    waiting = iter(tasks)

    def begun() -> Iterator[Task]:
        return (task for task in waiting if end is None or time.monotonic() < end)

    if jobs == 1:
        try:
            for task in begun():
                yield measure_case(*task, settings)
        finally:
            close_bench()
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=end_with_parent) as pool:
        running = {pool.submit(measure_case, *task, settings) for _, task in zip(range(jobs), begun(), strict=False)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            more = [pool.submit(measure_case, *task, settings) for _, task in zip(done, begun(), strict=False)]
            running |= set(more)
            yield from (future.result() for future in done)


def end_with_parent() -> None:
    """Have this process of a pool end when the one that began it is gone, however that ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only what another process has begun ends with it"

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run(options: argparse.Namespace) -> Results:
    """Measure what is not in the results yet, and keep it there."""
    if min(options.samples, options.deep_samples, options.chunk, options.jobs) < 1:
        raise UsageError("--samples, --deep-samples, --chunk and --jobs are 1 or more")
    ways = tuple(parse_way(text) for text in options.ways)
    settings = CellSettings(options.samples, options.deep_samples, options.chunk, ways, tuple(options.quality))
    results = read_results(options.results, versions(("torch", "diffusers")))
    tasks = tasks_of(options, settings, results)
    if tasks and options.command not in results["commands"]:
        results["commands"].append(options.command)
    start, cells = time.monotonic(), 0
    for number, found in enumerate(measure(tasks, settings, options.jobs, options.minutes), 1):
        results["cells"] |= found
        results["date"] = time.strftime("%Y-%m-%d")
        write_results(options.results, results)
        cells += len(found)
        took = time.monotonic() - start
        line = f"{took:6.0f} s  {number} of {len(tasks)} cases, {took / cells:.1f} s a cell: {_line(found)}"
        print(line, file=sys.stderr, flush=True)
    return results


def _line(found: dict[str, dict[str, Any]]) -> str:
    """The first cell of a case."""
    key, cell = next(iter(found.items()))
    if "failed" in cell:
        return f"{key} failed: {cell['failed']}"
    return f"{key}: {cell['engine']['psnr_db']:.1f} dB, {margin(cell):+.1f}, at {cell['speedup']:.2f}x"


@command("tools.quality.cells")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit code 0 when done, 2 for a wrong option."""
    options = parser().parse_args(argv)
    options.command = "python -m tools.quality.cells " + shlex.join(sys.argv[1:] if argv is None else argv)
    results = run(options)
    if options.calibrate:
        named = cases_of(options.denoisers, options.only, options.guidance, options.steps)
        calibrate_cells(options.calibrate, results, list(named))
    if options.write:
        options.write.write_text(document_page(results), encoding="utf-8")
    cells = measured(results)
    if cells:
        print("\n".join(summary(cells)))
        for cell in worst(cells):
            place = [cell[name] for name in ("denoiser", "sampler", "guidance", "steps")]
            print(f"worst: {' '.join(map(str, place))} {cell['branches']}x{cell['components']} {margin(cell):+.1f} dB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
