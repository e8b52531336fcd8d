"""branches_text, weights_text: what a plan's branches are, in a sentence; and that each holds all weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from partitioner.tables import size_text

Document = Mapping[str, Any]

_NUMBERS = ("no", "one", "two", "three", "four")


def branches_text(document: Document) -> list[str]:
    """What the branches of a plan are; nothing where there is one.

    Args:
        document: Of ``partitioner.report.describe``.

    >>> plan = {"branches": 4, "streams": 1, "rows_of_branches": [2, 2, 2, 2], "calls_per_step": 1, "images": 4}
    >>> branches_text(plan | {"guidance_style": "batch"})
    ['4 branches of 2 rows: 4 images x 2 guidance halves']
    >>> plan = {"branches": 2, "streams": 2, "rows_of_branches": [1], "calls_per_step": 2, "images": 1}
    >>> branches_text(plan | {"guidance_style": "two-calls"})
    ['2 branches: guidance in two calls, one each']
    """
    if document["branches"] == 1:
        return []
    rows: Sequence[int] = document["rows_of_branches"]
    divided = len(rows) > 1
    of = f" of {_rows(rows)}" if divided or rows[0] > 1 else ""
    shared = [_shared_rows(document, sum(rows))] if divided else []
    if document["streams"] > 1:
        shared.append(_shared_calls(document))
    return [f"{document['branches']} branches{of}: {'; '.join(shared)}"]


def _rows(rows: Sequence[int]) -> str:
    counts = sorted(set(rows), reverse=True)
    if counts == [1]:
        return "one row"
    shown = f"{rows[0]}" if len(counts) == 1 else f"{', '.join(map(str, rows[:-1]))} and {rows[-1]}"
    return f"{shown} rows"


def _shared_rows(document: Document, total: int) -> str:
    images, style = document["images"], document["guidance_style"]
    parts, rest = divmod(total, images)
    if style == "batch" and not rest and parts in (2, 3):
        if images == 1:
            return "the halves of guidance" if parts == 2 else "the three parts of guidance"
        return f"{images} images x {parts} guidance {'halves' if parts == 2 else 'parts'}"
    return f"{images} images" if total == images else f"the {total} rows of a call"


def _shared_calls(document: Document) -> str:
    calls, streams = document["calls_per_step"], document["streams"]
    number = _NUMBERS[calls] if calls < len(_NUMBERS) else str(calls)
    what = (
        f"guidance in {number} calls" if document["guidance_style"] == "two-calls" else f"the {number} calls of a step"
    )
    return f"{what}, {'one each' if calls == streams else 'by turns'}"


def weights_text(document: Document) -> list[str]:
    """That each branch holds all weights, and how much that is; nothing where there is one branch.

    Args:
        document: Of ``partitioner.report.describe``.
    """
    branches, components = document["branches"], document["components"]
    if branches == 1:
        return []
    held = [sum(c["parameter_bytes"] for c in components if c["branch"] == branch) for branch in range(branches)]
    over = "" if len(components) == branches else f" over its {len(components) // branches} components"
    return [f"each branch holds all weights{over}: {size_text(held[-1])} in one, {size_text(sum(held))} in all"]
