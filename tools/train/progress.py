"""TrainingProgress: how far a training is, its optimizer and its loss; TrainingRecipe: how something is trained."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class TrainingRecipe:
    """How something is trained.

    Attributes:
        iterations: at most; each with ``batch`` pictures.
        rate: the largest learning rate.
        batch: pictures.
        drawn: after so many pictures, batches are of those that were drawn already; 0 draws all anew.
        seconds: wall time after which training ends, if the iterations are not done by then.
    """

    iterations: int
    rate: float
    batch: int = 64
    drawn: int = 0
    seconds: float = math.inf


class TrainingProgress:
    """The optimizer, its learning rate (short warm-up, then a cosine), recent mean loss, and a log."""

    def __init__(self, modules: Sequence[nn.Module], recipe: TrainingRecipe, name: str) -> None:
        self._parameters = [p for module in modules for p in module.parameters()]
        self._recipe = recipe
        self._name = name
        self._optimizer = torch.optim.AdamW(self._parameters, lr=recipe.rate, weight_decay=0.01, fused=True)
        self._losses: list[float] = []
        self._start = time.perf_counter()

    @property
    def loss(self) -> float:
        recent = self._losses[-100:]
        return sum(recent) / len(recent)

    @property
    def iterations(self) -> int:
        """Those that are done."""
        return len(self._losses)

    @property
    def done(self) -> float:
        """From 0 to 1, at which training ends."""
        seconds = time.perf_counter() - self._start
        return min(1.0, max(self.iterations / self._recipe.iterations, seconds / self._recipe.seconds))

    def step(self, loss: torch.Tensor, shown: torch.Tensor | None = None) -> None:
        """One step of the optimizer. shown: the loss to report instead."""
        rate = self._recipe.rate * min(1.0, (self.iterations + 1) / 100) * (1 + math.cos(math.pi * self.done)) / 2
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._losses.append(float((loss if shown is None else shown).detach()))
        if len(self._losses) % 100 == 0:
            seconds = time.perf_counter() - self._start
            print(
                f"{self._name}: {self.iterations}/{self._recipe.iterations}, loss {self.loss:.4f}, {seconds:.0f} s",
                file=sys.stderr,
            )
