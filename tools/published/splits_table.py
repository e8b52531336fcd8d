"""Figures of splits as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from partitioner.tables import table_text


def table(found: Mapping[str, Any]) -> str:
    """Two tables: gaps to the lower bound of the step time T, and AsyncDiff's splits beside ours."""
    gaps = table_text(
        ["model", "N", "mode", "form", "gap", "straddling", "MB/step", "staleness", "copies", "seconds"],
        [
            [
                row["model"],
                str(row["devices"]),
                row["mode"],
                row["form"],
                f"{row['gap']:.2%}",
                f"{row['straddling_node']:.2%}",
                _megabytes(row["bytes_per_step"]),
                f"{row['staleness']:.3f}",
                f"{row['repeated_parameters']:.2%}",
                f"{row['seconds']:.2f}",
            ]
            for row in found["gaps"]
        ],
        left={0, 2, 3},
    )
    compared = table_text(
        [
            "model", "N", "AsyncDiff's T/bound", "staleness", "MB read", "MB sent",
            "our T/bound", "staleness", "MB sent",
        ],
        [
            [
                row["model"],
                str(row["devices"]),
                f"{row['theirs']['step_ms'] / row['lower_bound_ms']:.3f}",
                f"{row['theirs']['staleness']:.3f}",
                _megabytes(row["theirs"]["bytes_per_step"]),
                _megabytes(row["theirs"]["broadcast_bytes_per_step"]),
                f"{row['ours']['step_ms'] / row['lower_bound_ms']:.3f}",
                f"{row['ours']['staleness']:.3f}",
                _megabytes(row["ours"]["bytes_per_step"]),
            ]
            for row in found["asyncdiff"]
        ],
        left={0},
    )  # fmt: skip
    return f"{gaps}\n\n{compared}"


def sweep_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The best split for each epsilon: its step time T, staleness and bytes."""
    cells = [
        [
            row["model"],
            str(row["devices"]),
            f"{row['epsilon']:.2%}",
            row["form"],
            f"{row['step_ms']:.3f}",
            f"{row['staleness']:.3f}",
            _megabytes(row["bytes_per_step"]),
        ]
        for row in rows
    ]
    return table_text(["model", "N", "epsilon", "form", "T ms", "staleness", "MB/step"], cells, left={0, 3})


def _megabytes(size_bytes: float) -> str:
    return f"{size_bytes / 1e6:.1f}"
