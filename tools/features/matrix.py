"""run_matrix: the features that are asked for on the pipelines that are asked for."""

from __future__ import annotations

import multiprocessing
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from runtime.pipeline import parallelize
from tools.features import adapters, calls, conditioning, modules, storage
from tools.features.cell import Block, Cell, run_feature
from tools.features.feature import Feature
from tools.features.plans import fresh_plan
from tools.features.subject import Store, Subject
from tools.pages import be_quiet

FEATURES: list[Feature] = [
    *adapters.FEATURES,
    *conditioning.FEATURES,
    *modules.FEATURES,
    *storage.FEATURES,
    *calls.FEATURES,
]


def chosen(pattern: str) -> list[Feature]:
    """The features with a row in which a regular expression is found, in any case."""
    wanted = re.compile(pattern, re.IGNORECASE)
    return [feature for feature in FEATURES if any(wanted.search(step.row) for step in feature.steps)]


def run_matrix(pattern: str, pipelines: Sequence[str], transport: str, jobs: int = 1) -> dict[str, dict[str, Cell]]:
    """All cells, by row and pipeline; a line for each goes to stderr.

    Args:
        pattern: which rows, see ``chosen``.
        pipelines: keys of ``subject.PIPELINES``.
        transport: what the engine's ranks are.
        jobs: how many pipelines are tried at once, each in a process of its own.
    """
    column = partial(run_column, pattern=pattern, transport=transport)
    if jobs == 1:
        columns = [column(name) for name in pipelines]
    else:
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
            columns = list(pool.map(column, pipelines))
    rows = [step.row for feature in chosen(pattern) for step in feature.steps]
    return {row: {name: cells[row] for name, cells in zip(pipelines, columns, strict=True)} for row in rows}


def run_column(name: str, pattern: str, transport: str) -> dict[str, Cell]:
    """The cells of one pipeline, by row.

    Args:
        name: a key of ``subject.PIPELINES``.
        pattern: which rows, see ``chosen``.
        transport: what the engine's ranks are.
    """
    from diffusers.models.attention_dispatch import attention_backend

    be_quiet()
    torch.set_num_threads(1)
    found: dict[str, Cell] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        for feature in chosen(pattern):
            began = time.monotonic()
            with attention_backend("native"):  # what a feature chooses for all models ends with it
                cells = run_feature(feature, lambda: Subject(name, store), block_for(feature, transport))
            found |= cells
            for row, cell in cells.items():
                figure = "" if cell.difference is None else f" {cell.difference:.2g}"
                print(f"{name} | {row} | {cell.verdict}{figure} {cell.detail}", file=sys.stderr)
            print(f"  {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
    return found


def block_for(feature: Feature, transport: str) -> Block:
    """What runs a pipeline exactly, by a plan for two devices: a fresh one where the feature comes before the block."""

    def block(subject: Subject, pipe: Any) -> AbstractContextManager[Any]:
        if feature.branches == 2:
            return parallelize(pipe, devices=2, exact=True, transport=transport)
        if feature.before:
            plan = fresh_plan(subject, pipe)
        else:
            plan = subject.store.once(("plan", subject.name), lambda: fresh_plan(subject, pipe))
        return parallelize(pipe, plan, exact=True, transport=transport)

    return block
