"""Tables of gaps, of the comparison with AsyncDiff, and of the sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def sweep_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["model        N  epsilon  form          T ms  staleness   MB/step"]
    for row in rows:
        lines.append(
            f"{row['model']:12} {row['devices']}  {row['epsilon']:7.2%}  {row['form']:10} {row['step_ms']:7.3f}  "
            f"{row['staleness']:9.3f}  {row['bytes_per_step'] / 1e6:8.1f}"
        )
    return "\n".join(lines)


def table(found: dict[str, Any]) -> str:
    """Both tables as text."""
    lines = ["model        N  mode       form            gap  straddling   MB/step  staleness  copies  seconds"]
    for row in found["gaps"]:
        lines.append(
            f"{row['model']:12} {row['devices']}  {row['mode']:10} {row['form']:10} {row['gap']:8.2%}  "
            f"{row['straddling_node']:10.2%}  {row['bytes_per_step'] / 1e6:8.1f}  {row['staleness']:9.3f}  "
            f"{row['repeated_parameters']:6.2%}  {row['seconds']:7.2f}"
        )
    lines += ["", "model        N  AsyncDiff's T/bound  staleness  MB read  MB sent  our T/bound  staleness  MB sent"]
    for row in found["asyncdiff"]:
        theirs, ours, bound = row["theirs"], row["ours"], row["lower_bound_ms"]
        lines.append(
            f"{row['model']:12} {row['devices']}  {theirs['step_ms'] / bound:19.3f}  {theirs['staleness']:9.3f}  "
            f"{theirs['bytes_per_step'] / 1e6:7.1f}  {theirs['broadcast_bytes_per_step'] / 1e6:7.1f}  "
            f"{ours['step_ms'] / bound:11.3f}  {ours['staleness']:9.3f}  {ours['bytes_per_step'] / 1e6:7.1f}"
        )
    return "\n".join(lines)
