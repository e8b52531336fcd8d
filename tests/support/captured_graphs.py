"""CUDA graphs as they are, but for the GPU: what is captured is run again at every replay, in the same memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from runtime.devices import capture
from runtime.devices.capture import CapturedGraph, GraphMemory
from runtime.worker import component


def recorded(
    function: Callable[..., Sequence[Any]], arguments: Sequence[Any], memory: GraphMemory, device: torch.device
) -> CapturedGraph:
    """In place of ``record``: outputs have memory of their own, which holds what a capture leaves there: nothing."""
    made = [_each(torch.clone, value) for value in function(*arguments)]
    for tensor in _tensors(made):
        tensor.fill_(_nothing(tensor))

    def replay() -> None:
        for target, source in zip(_tensors(made), _tensors(function(*arguments)), strict=True):
            target.copy_(source)

    return CapturedGraph(made, replay)


def captured_on_cpu(patch: pytest.MonkeyPatch) -> None:
    """From now on ranks on the CPU replay graphs, too."""
    patch.setattr(component, "can_capture", lambda device: True)
    patch.setattr(capture, "record", recorded)


def _nothing(tensor: torch.Tensor) -> float:
    return float("nan") if tensor.is_floating_point() else 0


def _tensors(values: Sequence[Any]) -> list[torch.Tensor]:
    return [tensor for value in values for tensor in (value if isinstance(value, (list, tuple)) else [value])]


def _each(function: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    return [function(tensor) for tensor in value] if isinstance(value, (list, tuple)) else function(value)
