"""The comparison with the published speed-ups as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tools.published.speedups import LINKS


def table(document: Mapping[str, Any]) -> str:
    """The document for people."""
    lines = [f"published: {document['source']}", f"machine: {document['machine']}", ""]
    for model, fit in document["fitted"].items():
        lines.append(
            f"{model:12} every operator class reaches {fit['efficiency']:.1%} of its peak, fitted to one GPU's "
            f"published latency alone; {fit['outside_s']:.2f} s besides the denoiser; warm-up {fit['warmup']}"
        )
    for title, key in (("AsyncDiff, Table 1", "rows"), ("AsyncDiff, Table 4", "videos")):
        if document[key]:
            lines += ["", f"{title:23}{'published':>11}{'SIMULATED':>11}{'error':>8}{'published':>13}{'SIMULATED':>13}"]
            lines += [_published_line(row) for row in document[key]]
        if key == "rows" and document[key]:
            lines.append(
                f"mean absolute error {document['mean_absolute_error']:.1%}, largest {document['largest_error']:.1%}, "
                f"of {len(document['rows'])} speed-ups"
            )
    if document["communication"]:
        lines += ["", f"{'communication, Table 6':23}{'published':>11}{'SIMULATED':>11}"]
        for row in document["communication"]:
            lines.append(
                f"{'':12} {row['config']:10}{row['published_percent']:9.1f} %{row['simulated_percent']:9.1f} %"
            )
    return "\n".join([*lines, "", *_our_lines(document["ours"])])


def _published_line(row: Mapping[str, Any]) -> str:
    return (
        f"{row['model']:12} {row['config']:10}{row['published_speedup']:9.2f} x{row['simulated_speedup']:9.2f} x"
        f"{row['error']:+8.1%}{row['published_latency_s']:11.2f} s{row['simulated_latency_s']:11.2f} s"
    )


def _our_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "this project's plans on the same machine, all SIMULATED; plan: branches x components x period"
    head = f"{'':12} {'devices':>7} {'plan':>10} {'mode':>10} {'warm-up':>8}  {'asked for':24}"
    yield head + "".join(f"{link:>10}" for link in LINKS)
    by_plan: dict[tuple[str, int, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        by_plan.setdefault((row["model"], row["devices"], row["asked"]), []).append(row)
    for (model, devices, asked), same in by_plan.items():
        first = same[0]
        columns = "".join(f"{row['simulated_speedup']:8.2f} x" for row in same)
        yield f"{model:12} {devices:7} {first['plan']:>10} {first['mode']:>10} {first['warmup']:8}  {asked:24}{columns}"
