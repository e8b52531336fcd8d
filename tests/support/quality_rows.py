"""Quality profiles for tests: what would have been measured of the UNet with 50 steps of DDIM."""

from __future__ import annotations

from collections.abc import Iterable

from profiles.quality_profile import SCHEMA_VERSION, QualityProfile, QualityRow


def profile_of(measured: Iterable[tuple[str, int, float, float]], guidance_scale: float = 3.0) -> QualityProfile:
    """measured: predictor (or "fewer_steps"), components, dB and speed-up of each row."""
    rows = tuple(
        QualityRow(
            denoiser="unet", scheduler="DDIMScheduler", steps=50, components=components, split="contiguous",
            predictor=predictor, warmup=4, samples=8, psnr_db=psnr_db, speedup=speedup, guidance_scale=guidance_scale,
        )
        for predictor, components, psnr_db, speedup in measured
    )  # fmt: skip
    return QualityProfile(schema_version=SCHEMA_VERSION, date="", commands=(), versions={}, rows=rows)
