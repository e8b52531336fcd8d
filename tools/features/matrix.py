"""run_matrix: all features on all pipelines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

from runtime.pipeline import parallelize
from tools.features import adapters, calls, conditioning, modules, storage
from tools.features.cell import Block, Cell, run_feature
from tools.features.feature import Feature
from tools.features.plans import fresh_plan
from tools.features.subject import Store, Subject

FEATURES: list[Feature] = [
    *adapters.FEATURES,
    *conditioning.FEATURES,
    *modules.FEATURES,
    *storage.FEATURES,
    *calls.FEATURES,
]


def run_matrix(
    features: Iterable[Feature],
    pipelines: Iterable[str],
    store: Store,
    transport: str,
    progress: Callable[[str], None],
) -> dict[str, dict[str, Cell]]:
    """All cells, by row and pipeline.

    Args:
        features: what to do.
        pipelines: keys of ``subject.PIPELINES``.
        store: where files are.
        transport: what the engine's ranks are.
        progress: called with a line for each cell.
    """
    pipelines = list(pipelines)
    rows: dict[str, dict[str, Cell]] = {step.row: {} for feature in features for step in feature.steps}
    for name in pipelines:
        for feature in features:
            began = time.monotonic()
            cells = run_feature(feature, lambda name=name: Subject(name, store), block_for(feature, transport))  # type: ignore[misc]
            for row, cell in cells.items():
                rows[row][name] = cell
                figure = "" if cell.difference is None else f" {cell.difference:.2g}"
                progress(f"{row} | {name} | {cell.verdict}{figure} {cell.detail}")
            progress(f"  {time.monotonic() - began:.1f} s")
    return rows


def block_for(feature: Feature, transport: str) -> Block:
    """What runs a pipeline exactly, by a fresh plan for two devices."""

    def block(subject: Subject, pipe: Any) -> AbstractContextManager[Any]:
        if feature.branches == 2:
            return parallelize(pipe, devices=2, exact=True, transport=transport)
        if feature.before:
            plan = fresh_plan(subject, pipe)
        else:
            plan = subject.store.once(("plan", subject.name), lambda: fresh_plan(subject, pipe))
        return parallelize(pipe, plan, exact=True, transport=transport)

    return block
