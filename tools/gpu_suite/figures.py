"""Prints the figures of a results file as Markdown tables; all times in ms.

    python -m tools.gpu_suite.figures gpu.tar.gz --profiles profiles/data

Profiles of operators are those that CUDA graphs replayed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from profiles.cost_profile import CostProfile
from profiles.device_sheets import match_device
from tools.command import command
from tools.gpu_suite.results import unpack_results
from tools.gpu_suite.run_part import MODULES

OTHERS = (".profile.json", ".plan.json", ".trace.json")  # files that are no part's document

Documents = Mapping[str, dict[str, Any]]  # by name of the part; of a part that did not end, what it had found


@command("tools.gpu_suite.figures")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; exit code 0."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_suite.figures", description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, metavar="FILE.tar.gz")
    parser.add_argument("--profiles", type=Path, metavar="FOLDER", help="also put the recorded profiles there")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        unpack_results(options.results, Path(place))
        print(figures(documents_in(Path(place))), end="")
        if options.profiles:
            print("\n".join(["", *save_profiles(Path(place), options.profiles)]))
    return 0


def save_profiles(folder: Path, target: Path) -> list[str]:
    """Save recorded profiles under the names of device and model; returns the rows of their table."""
    rows = []
    for path in sorted(folder.glob("*.cuda_graph.profile.json")):
        profile = CostProfile.load(path)
        (check,) = profile.checks
        name = f"{match_device(profile.device_name) or profile.device_name}-{check.model}.json"
        profile.save(target / name, overwrite=True)
        times = f"{check.summed_ms:.1f} ms | {check.whole_ms:.1f} ms | {100 * check.error:+.1f} %"
        rows.append(f"| {name} | {check.model} | {profile.mode} | {times} |")
    return rows


def documents_in(folder: Path) -> dict[str, dict[str, Any]]:
    """The documents of parts in a folder."""
    found = {}
    for path in sorted(folder.glob("*.json"), key=lambda path: ".partial" not in path.name):  # whole ones come last
        if path.name.split("-")[0].split(".")[0] in MODULES and not path.name.endswith(OTHERS):
            found[path.name.removesuffix(".json").removesuffix(".partial")] = json.loads(path.read_text())
    return found


def figures(documents: Documents) -> str:
    """Tables of all that was measured."""
    return "\n".join(
        [
            *_about(documents),
            *_table("profile, mode", "nodes sum to", "whole", "error", "eager whole", rows=_profiles(documents)),
            *_table("compiled", "eager", "as a CUDA graph", "compile s", rows=_compiled(documents)),
            *_table("components alone", "mode", "measured", "predicted", "speed-up", rows=_components(documents)),
            *_table(
                "engine", "graphs", "exact step", "host", "async step", "host", "module", "exact output",
                "difference of async", rows=_engines(documents)
            ),
            *_table(
                "components at once", "alone", "together", "alone on shares", "together on shares",
                "whole on a share", rows=_concurrent(documents),
            ),
            *_table("pipeline", "run", "equal", "PSNR dB", "per step", rows=_pipelines(documents)),
        ]
    )  # fmt: skip


def _about(documents: Documents) -> Iterator[str]:
    if "environment" in documents:
        found = documents["environment"]
        gpu = found.get("gpu", {}).get("name", "no GPU")
        yield f"{gpu}, {found['processors']} processors, torch {found['packages']['torch']}, Python {found['python']}"
        yield ""
    if "tests" in documents:
        found = documents["tests"]
        yield f"Tests: {found['counts']}, failed: {', '.join(found['failed']) or 'none'}"
        yield ""


def _table(*heads: str, rows: Iterator[list[Any]]) -> Iterator[str]:
    lines = ["| " + " | ".join(_text(cell) for cell in row) + " |" for row in rows]
    if lines:
        yield "| " + " | ".join(heads) + " |"
        yield "|" + "---|" * len(heads)
        yield from lines
        yield ""


def _text(cell: Any) -> str:
    if isinstance(cell, float):
        return f"{cell:.3g}" if abs(cell) < 1 else f"{cell:.2f}"
    if isinstance(cell, list):
        return " ".join(map(_text, cell))
    return "" if cell is None else str(cell)


def _of(documents: Documents, *kinds: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, document in documents.items():
        if name.split("-")[0] in kinds:
            yield name, document


def _profiles(documents: Documents) -> Iterator[list[Any]]:
    for name, found in _of(documents, "profile", "eager", "half"):
        yield [
            f"{name} {found.get('dtype', '')} {found.get('mode', '')}", found.get("summed_ms"), found.get("whole_ms"),
            f"{100 * found['error']:+.1f} %" if "error" in found else found.get("refused"),
            found.get("eager_whole_ms"),
        ]  # fmt: skip


def _compiled(documents: Documents) -> Iterator[list[Any]]:
    for name, found in _of(documents, "compiled"):
        times = [found.get(f"{mode}_ms", found.get(f"{mode}_refused")) for mode in ("eager", "cuda_graph")]
        yield [name, *times, found.get("compile_s")]


def _components(documents: Documents) -> Iterator[list[Any]]:
    for name, found in _of(documents, "components"):
        for row in found["rows"]:
            for mode in ("cuda_graph", "eager"):
                if f"{mode}_ms" in row:
                    told = row["predicted_ms"]
                    yield [f"{name} {row['components']}", mode, row[f"{mode}_ms"], told, row[f"{mode}_speedup"]]


def _engines(documents: Documents) -> Iterator[list[Any]]:
    for name, found in _of(documents, "engine"):
        for row in found["rows"]:
            graphs = "no" if row["cuda_graphs"] is False else "where possible"
            times = [row.get(key) for key in ("exact_step_ms", "exact_host_ms", "step_ms", "host_ms")]
            equal = "equal" if row.get("equals_module") and row.get("replayed_equals_module") else "not equal"
            module = found.get("module", {}).get("step_ms")
            yield [name, graphs, *times, module, row.get("failed", equal), row.get("difference")]


def _concurrent(documents: Documents) -> Iterator[list[Any]]:
    names = ("unshared_alone_ms", "unshared_together_ms", "alone_ms", "together_ms", "whole_on_share_ms")
    for name, found in _of(documents, "concurrency"):
        yield [f"{name} whole", found.get("whole_ms"), None, None, None, None]
        for row in found["rows"]:
            yield [f"{name} {row['components']}", *(row.get(key, row.get("refused")) for key in names)]


def _pipelines(documents: Documents) -> Iterator[list[Any]]:
    for name, found in _of(documents, "pipeline"):
        for run in ("exact", "lookahead"):
            if run in found:
                row = found[run]
                per_step = row["lookahead_ms_per_step"] or row["async_ms_per_step"] or row["exact_ms_per_step"]
                yield [name, run, str(row["equal"]), row["psnr_db"], per_step]


if __name__ == "__main__":
    sys.exit(main())
