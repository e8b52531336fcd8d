"""PartRun: what a part of the suite is given."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tools.gpu_suite.card import Card


@dataclass(frozen=True)
class PartRun:
    """What a part of the suite is given.

    Attributes:
        denoiser: name of the one that it measures.
        choices: what else tells it from other parts of its kind, such as a transport.
        device: "cuda:0" or "cpu".
        folder: where profiles, traces, plans and pictures are.
        card: the right to use the device alone.
        save: keeps the document as far as it is, in case the part does not come to its end.
    """

    denoiser: str
    choices: tuple[str, ...]
    device: str
    folder: Path
    card: Card
    save: Callable[[dict[str, Any]], None]

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    @property
    def target(self) -> torch.device:
        return torch.device(self.device)

    @contextmanager
    def alone(self, limit_s: float) -> Iterator[None]:
        """A block in which the part has the device alone, for at most limit_s; longer on a CPU, where nothing hangs."""
        if self.on_gpu:
            _load_libraries(self.target)
        asked = time.monotonic()
        with self.card.held(limit_s if self.on_gpu else 20 * limit_s):
            has = time.monotonic()
            yield
        print(
            f"had the device for {time.monotonic() - has:.1f} s, after {has - asked:.1f} s", file=sys.stderr, flush=True
        )

    def give_way(self) -> None:
        """Let a more worthy part that waits have the device, and the memory that is not used here, first."""
        if self.card.is_wanted():
            if self.on_gpu:
                torch.cuda.empty_cache()
            self.card.give_way()

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        if self.on_gpu:
            torch.cuda.synchronize(self.target)


@functools.cache
def _load_libraries(device: torch.device) -> None:
    """Have CUDA, cuBLAS and cuDNN loaded, which takes seconds, before the device is another part's to wait for."""
    image = torch.ones(1, 8, 8, 8, dtype=torch.float16, device=device)
    torch.nn.functional.conv2d(image, torch.ones(8, 8, 3, 3, dtype=torch.float16, device=device))
    torch.mm(image[0, 0], image[0, 0])
    torch.cuda.synchronize(device)
