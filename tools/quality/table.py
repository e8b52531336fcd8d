"""The columns of the command's table."""

from __future__ import annotations

from typing import Any

_COLUMNS = (
    ("scheduler", "{:<30}"), ("steps", "{:>5}"), ("devices", "{:>7}"), ("branches", "{:>8}"), ("components", "{:>10}"),
    ("split", "{:<10}"), ("predictor", "{:<11}"), ("warmup", "{:>6}"), ("psnr_db", "{:>7.2f}"), ("ssim", "{:>6.4f}"),
    ("agreement", "{:>9}"), ("frechet", "{:>8}"), ("frechet_noise", "{:>13}"), ("speedup", "{:>7.2f}"),
)  # fmt: skip


def row_line(row: dict[str, Any]) -> str:
    return "  ".join(form.format("-" if row[name] is None else row[name]) for name, form in _COLUMNS)


def heading() -> str:
    return "  ".join(f"{name:{form[2]}{form[3:].split('.')[0].rstrip('}f')}}" for name, form in _COLUMNS)
