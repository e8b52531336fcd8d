"""What was found of each class, kept in a file, so that a run goes on where it was stopped."""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tools.pages import be_quiet, commit
from tools.support.adapters import try_lora
from tools.support.denoisers import DENOISERS
from tools.support.pipeline_tries import try_pipeline
from tools.support.pipelines import PIPELINES
from tools.support.tries import try_denoiser

Found = dict[str, Any]  # "denoisers" and "pipelines": class -> what was found; and "versions"
KINDS = ("denoisers", "pipelines")


def read_results(path: Path | None, versions: str) -> Found:
    """The results in a file; none where it is not there, or was made with other versions.

    Args:
        path: A JSON file; None for no results.
        versions: Of the packages that are installed.
    """
    if path is not None and path.exists():
        found: Found = json.loads(path.read_text(encoding="utf-8"))
        if found["versions"] == versions:
            return found
    return {"versions": versions, **{kind: {} for kind in KINDS}}


def write_results(path: Path, found: Found) -> None:
    """Keep results, sorted, one class a line."""
    lines = [f'{{\n"versions": {json.dumps(found["versions"])}']
    for kind in KINDS:
        rows = [f"{json.dumps(name)}: {json.dumps(found[kind][name])}" for name in sorted(found[kind])]
        lines.append(f'"{kind}": {{\n' + ",\n".join(rows) + "\n}")
    path.write_text(",\n".join(lines) + "\n}\n", encoding="utf-8")


def chosen(patterns: Sequence[str]) -> list[tuple[str, str]]:
    """The classes whose names contain one of some texts, in any case: their kind and name; all where there is none."""
    names = [("denoisers", name) for name in DENOISERS] + [("pipelines", name) for name in PIPELINES]
    parts = [pattern.lower() for pattern in patterns] or [""]
    return [(kind, name) for kind, name in names if any(part in name.lower() for part in parts)]


def try_all(tasks: Sequence[tuple[str, str]], jobs: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Try classes, and say what was found as soon as it is.

    Args:
        tasks: Kinds and names, from ``chosen``.
        jobs: How many processes try them; 1 for this one.
    """
    if jobs == 1:
        for kind, name in tasks:
            yield kind, name, try_one(kind, name)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(try_one, kind, name): (kind, name) for kind, name in tasks}
        for future in as_completed(waiting):
            yield (*waiting[future], future.result())


def try_one(kind: str, name: str) -> dict[str, Any]:
    """What is found of one class, as JSON takes it."""
    be_quiet()
    torch.set_num_threads(1)
    began = time.monotonic()
    if kind == "denoisers":
        found = {**asdict(try_denoiser(DENOISERS[name])), "lora": try_lora(DENOISERS[name])}
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = asdict(try_pipeline(PIPELINES[name], Path(folder)))
    found["commit"] = commit()
    print(f"{name}: {found} in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return found
