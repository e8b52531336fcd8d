"""on_cpu_meanwhile: a denoiser that lies whole on a GPU lies on the CPU while ranks on several devices have its shares.

A rank takes its own share from wherever the denoiser is. So once the denoiser is on the CPU, no GPU holds more of it
than its rank's share, and what of it the files hold takes no memory there either (runtime.transport.weights). All else
of the pipeline stays where it is, and so does the pipeline itself, which is where a part of it is on a GPU.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from runtime.devices.memory import free_bytes, give_back
from runtime.devices.places import with_index
from runtime.parts import size_bytes
from runtime.transport.movable import held_elsewhere

logger = logging.getLogger("runtime")


@contextmanager
def on_cpu_meanwhile(pipe: Any, denoisers: Sequence[nn.Module], devices: Sequence[str]) -> Iterator[None]:
    """Inside the block denoisers on GPUs are on the CPU, if ranks elsewhere than there are to run them; then back.

    With a warning those stay that the CPU has no memory for, of whose memory something else has a part, or without
    which the pipeline would be elsewhere.

    Args:
        pipe: a diffusers pipeline.
        denoisers: the modules that ranks are to run.
        devices: rank -> device.
    """
    moved: list[tuple[nn.Module, torch.device]] = []
    try:
        for denoiser in denoisers:
            home = _gpu_of(denoiser)
            if home is not None and any(with_index(device) != str(home) for device in devices):
                moved += [(denoiser, home)] * _moves(pipe, denoiser, home)
        if moved:
            give_back()
        yield
    finally:
        for denoiser, home in moved:
            denoiser.to(home)


def _gpu_of(denoiser: nn.Module) -> torch.device | None:
    """The GPU that all of a denoiser is on; None where it is elsewhere, or somebody else moves it about."""
    places = {tensor.device for tensor in (*denoiser.parameters(), *denoiser.buffers())}
    if any(hasattr(module, "_hf_hook") for module in denoiser.modules()):
        return None
    return places.pop() if len(places) == 1 and next(iter(places)).type == "cuda" else None


def _moves(pipe: Any, denoiser: nn.Module, home: torch.device) -> bool:
    """Move a denoiser to the CPU; whether it could be."""
    name, size = type(denoiser).__name__, size_bytes(denoiser)
    free = free_bytes("cpu")
    if free is not None and size > free:
        logger.warning(
            "%s (%.1f GB) stays whole on %s beside rank 0's share: the CPU has %.1f GB free",
            name, size / 1e9, home, free / 1e9,
        )  # fmt: skip
        return False
    if held_elsewhere((*denoiser.parameters(), *denoiser.buffers())):
        logger.warning(
            "%s (%.1f GB) stays whole on %s beside rank 0's share: something else has a part of its parameters' "
            "memory, such as what state_dict() gave, and would be left with another copy of them",
            name, size / 1e9, home,
        )  # fmt: skip
        return False
    before = getattr(pipe, "device", None)
    denoiser.to("cpu")
    if getattr(pipe, "device", None) == before:
        return True
    denoiser.to(home)  # the pipeline would make its latents on the CPU, which are nobody else's
    logger.warning(
        "%s (%.1f GB) stays whole on %s: without it nothing of the pipeline would be there. Leave the pipeline on the "
        "CPU, and each GPU holds its rank's share only",
        name, size / 1e9, home,
    )  # fmt: skip
    return False
