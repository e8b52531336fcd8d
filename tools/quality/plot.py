"""plot: PSNR against speed-up as a picture file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from profiles.quality_profile import FEWER_STEPS
from tools.quality.result_row import by_case


def plot(document: dict[str, Any], file: Path) -> None:
    """Write a picture with a panel per case and in it a line per predictor and split, points marked with devices."""
    from matplotlib.figure import Figure

    panels = by_case(document)
    figure = Figure(figsize=(5.5 * len(panels), 4.5), layout="constrained")
    for number, (whole, *rows) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        for predictor, split in dict.fromkeys((row["predictor"], row["split"]) for row in rows):
            own = [row for row in rows if (row["predictor"], row["split"]) == (predictor, split)]
            own.sort(key=lambda row: (row["devices"], row["speedup"]))
            speedups, psnr_db = [row["speedup"] for row in own], [row["psnr_db"] for row in own]
            if predictor == FEWER_STEPS:
                axes.plot(speedups, psnr_db, "o--", color="black", label="fewer steps")
                continue
            axes.plot(speedups, psnr_db, "o-", label=f"{predictor}, {split}")
            for row in own:
                point = row["speedup"], row["psnr_db"]
                axes.annotate(str(row["devices"]), point, xytext=(4, 4), textcoords="offset points", fontsize=8)
        axes.set(xlabel="speed-up (simulated)", title=f"{whole['scheduler']}, {whole['steps']} steps")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("PSNR against sequential, dB")
    figure.axes[0].legend(title="(numbers: devices)", fontsize=8)
    figure.suptitle(f"{document['denoiser']}, {panels[0][0]['samples']} samples")
    figure.savefig(file, dpi=110)
