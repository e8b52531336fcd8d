"""Settings of torch: what one process has made, another can take over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from runtime.devices.torch_settings import apply_settings, torch_settings

CHANGES: dict[str, Callable[[], Any]] = {
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "deterministic": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "attention": lambda: torch.backends.cuda.enable_flash_sdp(False),
    "matrix products": lambda: torch.set_float32_matmul_precision("high"),
    "cudnn": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "mkldnn": lambda: setattr(torch.backends.mkldnn, "enabled", False),
    "reduced precision": lambda: setattr(torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", False),
}


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = torch_settings()
    yield
    apply_settings(before)
    assert torch_settings() == before


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_setting_is_read_and_taken_over(change: Callable[[], Any]) -> None:
    before = torch_settings()
    change()
    changed = torch_settings()
    assert changed != before
    apply_settings(before)
    assert torch_settings() == before
    apply_settings(changed)
    assert torch_settings() == changed
