"""Predictors: what turns the lagged values of one boundary tensor into an estimate of the current one.

One predictor object per boundary tensor, branch and cache context; ``reset`` at a trajectory's start. All are
deterministic functions of the values observed, so emulation and ranks agree bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch


class Predictor(ABC):
    """Observes a boundary tensor's messages in order and estimates a later one."""

    @abstractmethod
    def observe(self, step: int, value: torch.Tensor) -> None:
        """Take the message of ``step`` (ascending); the tensor is kept, never written to."""

    @abstractmethod
    def estimate(self, step: int) -> torch.Tensor:
        """The estimate for ``step``, later than all observed; at least one value has been observed."""

    @abstractmethod
    def reset(self) -> None:
        """Forget everything."""


class Hold(Predictor):
    """``v̂_k = v_last``: AsyncDiff's rule (arXiv 2406.06911). Keeps one value, computes nothing."""

    def __init__(self) -> None:
        self._last: torch.Tensor | None = None

    def observe(self, step: int, value: torch.Tensor) -> None:
        self._last = value

    def estimate(self, step: int) -> torch.Tensor:
        assert self._last is not None
        return self._last

    def reset(self) -> None:
        self._last = None


class Linear(Predictor):
    """``v̂_k = v_j + (k−j)/(j−i) · (v_j − v_i)``, i and j the last two steps observed.

    Keeps two values, costs one pass over the tensor. Gain 3 at the highest frequency: may diverge on chains of
    many components.
    """

    def __init__(self) -> None:
        self._values: list[tuple[int, torch.Tensor]] = []

    def observe(self, step: int, value: torch.Tensor) -> None:
        self._values = [*self._values[-1:], (step, value)]

    def estimate(self, step: int) -> torch.Tensor:
        if len(self._values) < 2:
            return self._values[-1][1]
        (i, before), (j, last) = self._values
        return torch.lerp(before, last, (step - i) / (j - i))

    def reset(self) -> None:
        self._values = []


class Adaptive(Predictor):
    """``v̂_k = v_j + γ · (k−j)/(j−i) · d_j``, with ``d_j = v_j − v_i`` and γ what the last differences share.

    ``γ = clip(⟨d_j, d_i⟩ / ⟨d_i, d_i⟩ · (length of d_i's step)/(length of d_j's), 0, 1)``, one scalar per boundary
    tensor, in float32. Where changes do not continue, γ falls to 0 and it holds, so it cannot run away.
    Keeps two values and one difference, costs about three passes over the tensor.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._last: tuple[int, torch.Tensor] | None = None
        self._slope: torch.Tensor | None = None  # change per step over the last interval
        self._gamma: torch.Tensor | None = None

    def observe(self, step: int, value: torch.Tensor) -> None:
        if self._last is not None:
            before_step, before = self._last
            slope = (value - before) / (step - before_step)
            if self._slope is not None:
                old = self._slope.flatten().float()
                shared = torch.dot(slope.flatten().float(), old)
                norm = torch.dot(old, old)
                ratio = torch.where(norm > 0, shared / norm, torch.zeros_like(norm))
                self._gamma = ratio.clamp(0.0, 1.0).to(value.dtype)
            self._slope = slope
        self._last = (step, value)

    def estimate(self, step: int) -> torch.Tensor:
        assert self._last is not None
        last_step, last = self._last
        if self._slope is None or self._gamma is None:
            return last
        return torch.addcmul(last, self._slope, self._gamma * (step - last_step))


PREDICTORS: dict[str, type[Predictor]] = {"hold": Hold, "linear": Linear, "adaptive": Adaptive}
