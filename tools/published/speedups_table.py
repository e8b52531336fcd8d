"""Published and simulated speed-ups as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from partitioner.tables import table_text
from tools.published.speedups import LINKS


def table(document: Mapping[str, Any]) -> str:
    """The document for people; everything that is simulated is marked so."""
    return "\n".join([*_fit_lines(document), *_published_lines(document), "", *_our_lines(document["ours"])])


def _fit_lines(document: Mapping[str, Any]) -> Iterator[str]:
    yield f"published: {document['source']}"
    yield f"machine: {document['machine']}"
    yield ""
    yield table_text(
        ["fitted to one GPU's published latency", "share of peaks", "besides the denoiser, s", "warm-up"],
        [
            [model, f"{fit['efficiency']:.1%}", f"{fit['outside_s']:.2f}", str(fit["warmup"])]
            for model, fit in document["fitted"].items()
        ],
        left={0},
    )


def _published_lines(document: Mapping[str, Any]) -> Iterator[str]:
    for title, key in (("AsyncDiff, Table 1", "rows"), ("AsyncDiff, Table 4", "videos")):
        if document[key]:
            yield ""
            yield table_text(
                [title, "", "published", "SIMULATED", "error", "published", "SIMULATED"],
                [
                    [
                        row["model"],
                        row["config"],
                        f"{row['published_speedup']:.2f} x",
                        f"{row['simulated_speedup']:.2f} x",
                        f"{row['error']:+.1%}",
                        f"{row['published_latency_s']:.2f} s",
                        f"{row['simulated_latency_s']:.2f} s",
                    ]
                    for row in document[key]
                ],
                left={0, 1},
            )
        if key == "rows" and document[key]:
            yield (
                f"mean absolute error {document['mean_absolute_error']:.1%}, largest {document['largest_error']:.1%}, "
                f"of {len(document['rows'])} speed-ups"
            )
    if document["communication"]:
        yield ""
        yield table_text(
            ["communication, Table 6", "published", "SIMULATED"],
            [
                [row["config"], f"{row['published_percent']:.1f} %", f"{row['simulated_percent']:.1f} %"]
                for row in document["communication"]
            ],
            left={0},
        )


def _our_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "this project's plans on the same machine, all SIMULATED; plan: branches x components x period"
    by_plan: dict[tuple[str, int, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        by_plan.setdefault((row["model"], row["devices"], row["asked"]), []).append(row)
    yield table_text(
        ["", "devices", "plan", "mode", "warm-up", "asked for", *LINKS],
        [
            [
                model,
                str(devices),
                same[0]["plan"],
                same[0]["mode"],
                str(same[0]["warmup"]),
                asked,
                *(f"{row['simulated_speedup']:.2f} x" for row in same),
            ]
            for (model, devices, asked), same in by_plan.items()
        ],
        left={0, 5},
    )
