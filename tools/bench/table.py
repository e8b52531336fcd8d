"""The benchmark's results as text."""

from __future__ import annotations

from typing import Any


def table(document: dict[str, Any]) -> str:
    """The results for people."""
    lines = []
    for row in document["results"]:
        spread = row["spread_ms"]

        def line(label: str, key: str, name: str, row: dict[str, Any] = row, spread: dict[str, Any] = spread) -> str:
            ratio = row[key] / row["sequential_ms"]
            return f"  {label:<34}{row[key]:>9.1f} ms  {ratio:>6.3f}  (spread {spread[name]:.1f} ms)"

        lines += [
            f"{row['denoiser']}: {row['ranks']} ranks, {row['predictor']}, {row['steps']} steps, warm-up "
            f"{row['warmup']}, {row['rounds']} rounds; ratios to one thread",
            line("unmodified, one thread", "sequential_ms", "sequential"),
            line("unmodified, two threads", "sequential_2_threads_ms", "sequential_2_threads"),
            line("engine, async", "async_ms", "async"),
            line("engine, look-ahead", "lookahead_ms", "lookahead"),
            line(f"engine, exact, {row['microbatches']} micro-batches", "exact_ms", "exact"),
            line("AsyncDiff's policy", "asyncdiff_policy_ms", "policy"),
            f"  after the warm-up: async {row['async_step_ms']:.1f} ms, look-ahead {row['lookahead_step_ms']:.1f} ms "
            f"({row['lookahead_step_to_async_step']:.3f}), async on look-ahead's split "
            f"{row['async_on_chain_step_ms']:.1f} ms ({row['lookahead_step_to_async_on_chain_step']:.3f})",
            f"  engine to AsyncDiff's policy: time {row['ratio_to_asyncdiff_policy']:.3f}, bytes "
            f"{row['bytes_per_step'] / row['asyncdiff_policy_bytes_per_step']:.3f} ({row['bytes_per_step'] / 1e6:.2f} "
            f"of {row['asyncdiff_policy_bytes_per_step'] / 1e6:.2f} MB per step)",
            f"  engine: sends for {row['communication_share']:.1%} of a step, waits for {row['wait_share']:.1%}; "
            f"policy: in broadcasts for {row['asyncdiff_policy_communication_share']:.1%}",
            f"  simulated: async {row['simulated_ms']:.1f} ms, look-ahead {row['lookahead_simulated_ms']:.1f} ms",
        ]
        if "period" in row:
            lines += [
                line(f"engine, period {row['period']}", "multirate_ms", "multirate"),
                f"  after the warm-up: period {row['period']} {row['multirate_step_ms']:.1f} ms, "
                f"{row['multirate_step_ratio_to_sequential']:.3f} (ideal {row['multirate_ideal_ratio']:.3f})",
            ]
        for rank in row["memory"]:
            started, predicted = rank["started_bytes"], rank["predicted_bytes"]
            grown = rank["resident_bytes"] - started
            lines.append(
                f"  rank {rank['rank']}: {rank['parameter_bytes'] / 1e6:.0f} MB of parameters; process "
                f"{rank['resident_bytes'] / 1e6:.0f} MB, {rank['resident_bytes'] / (started + predicted):.2f} of "
                f"{started / 1e6:.0f} before it had anything + {predicted / 1e6:.0f} predicted (it has grown by "
                f"{grown / 1e6:.0f}, {grown / predicted:.2f} of that); policy's process "
                f"{rank['asyncdiff_policy_resident_bytes'] / 1e6:.0f} MB"
            )
    return "\n".join(lines)
