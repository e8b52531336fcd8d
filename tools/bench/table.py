"""The benchmark's results as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from partitioner.tables import table_text


def table(document: dict[str, Any]) -> str:
    """The results for people: for each denoiser a head line, a table of times, a few sentences, a table of memory."""
    return "\n\n".join("\n".join(_denoiser_lines(row)) for row in document["results"])


def _denoiser_lines(row: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{row['denoiser']}: {row['ranks']} ranks, {row['predictor']}, {row['steps']} steps, warm-up {row['warmup']}, "
        f"{row['rounds']} rounds; ratios to one thread"
    )
    yield _times(row)
    yield (
        f"after the warm-up: async {row['async_step_ms']:.1f} ms, look-ahead {row['lookahead_step_ms']:.1f} ms "
        f"({row['lookahead_step_to_async_step']:.3f}), async on look-ahead's split "
        f"{row['async_on_chain_step_ms']:.1f} ms ({row['lookahead_step_to_async_on_chain_step']:.3f})"
    )
    yield (
        f"engine to AsyncDiff's policy: time {row['ratio_to_asyncdiff_policy']:.3f}, bytes "
        f"{row['bytes_per_step'] / row['asyncdiff_policy_bytes_per_step']:.3f} ({row['bytes_per_step'] / 1e6:.2f} "
        f"of {row['asyncdiff_policy_bytes_per_step'] / 1e6:.2f} MB per step)"
    )
    yield (
        f"share of a step: engine sending {row['communication_share']:.1%}, engine waiting {row['wait_share']:.1%}, "
        f"AsyncDiff's policy in broadcasts {row['asyncdiff_policy_communication_share']:.1%}"
    )
    yield f"simulated: async {row['simulated_ms']:.1f} ms, look-ahead {row['lookahead_simulated_ms']:.1f} ms"
    if "period" in row:
        yield (
            f"after the warm-up: period {row['period']} {row['multirate_step_ms']:.1f} ms, "
            f"{row['multirate_step_ratio_to_sequential']:.3f} (ideal {row['multirate_ideal_ratio']:.3f})"
        )
    yield _memory(row["memory"])


def _times(row: dict[str, Any]) -> str:
    runs = [
        ("unmodified, one thread", "sequential_ms", "sequential"),
        ("unmodified, two threads", "sequential_2_threads_ms", "sequential_2_threads"),
        ("engine, async", "async_ms", "async"),
        ("engine, look-ahead", "lookahead_ms", "lookahead"),
        (f"engine, exact, {row['microbatches']} micro-batches", "exact_ms", "exact"),
        ("AsyncDiff's policy", "asyncdiff_policy_ms", "policy"),
    ]
    if "period" in row:
        runs.append((f"engine, period {row['period']}", "multirate_ms", "multirate"))
    cells = [
        [label, f"{row[key]:.1f}", f"{row[key] / row['sequential_ms']:.3f}", f"{row['spread_ms'][name]:.1f}"]
        for label, key, name in runs
    ]
    return table_text(["mean time of a call", "ms", "ratio", "spread, ms"], cells, left={0})


def _memory(ranks: list[dict[str, Any]]) -> str:
    headers = ["MB", "parameters", "process", "before", "grown by", "predicted", "grown / predicted"]
    cells = []
    for rank in ranks:
        resident, started, predicted = rank["resident_bytes"], rank["started_bytes"], rank["predicted_bytes"]
        sizes = [rank["parameter_bytes"], resident, started, resident - started, predicted]
        cells.append(
            [
                f"rank {rank['rank']}",
                *(f"{size / 1e6:.0f}" for size in sizes),
                f"{(resident - started) / predicted:.2f}",
                f"{resident / (started + predicted):.2f}",
                f"{rank['asyncdiff_policy_resident_bytes'] / 1e6:.0f}",
            ]
        )
    return table_text([*headers, "process / (before + predicted)", "AsyncDiff's process"], cells, left={0})
