"""Predictors: what turns the lagged values of one boundary tensor into an estimate of the current one.

There is one predictor object per boundary tensor, branch and cache context, made anew for each trajectory. All are
deterministic functions of the values observed, so emulation and ranks agree bit for bit.

    v_i, v_j: the last two values observed, of the steps i < j.  v̂_k: the estimate for a step k > j.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

_NOTHING = torch.finfo(torch.float32).tiny  # a sum of squares that is less is 0


class Predictor(ABC):
    """Observes a boundary tensor's messages in order and estimates a later one."""

    @abstractmethod
    def observe(self, step: int, value: torch.Tensor) -> None:
        """Take the message of ``step`` (ascending); the tensor is kept, never written to."""

    @abstractmethod
    def estimate(self, step: int) -> torch.Tensor:
        """The estimate for ``step``, later than all observed; at least one value has been observed."""


class Hold(Predictor):
    """``v̂_k = v_j``: AsyncDiff's rule (arXiv 2406.06911). Keeps one value, computes nothing.

    >>> predictor = Hold()
    >>> predictor.observe(0, torch.tensor(1.0))
    >>> predictor.estimate(1)
    tensor(1.)
    """

    def __init__(self) -> None:
        self._last: torch.Tensor | None = None

    def observe(self, step: int, value: torch.Tensor) -> None:
        self._last = value

    def estimate(self, step: int) -> torch.Tensor:
        assert self._last is not None
        return self._last


class Linear(Predictor):
    """``v̂_k = v_j + (k−j)/(j−i) · (v_j − v_i)``.

    Keeps two values, costs one pass over the tensor. It amplifies what alternates from step to step threefold, and so
    may diverge on chains of many components.

    >>> predictor = Linear()
    >>> predictor.observe(0, torch.tensor(1.0))
    >>> predictor.observe(1, torch.tensor(3.0))
    >>> predictor.estimate(2)
    tensor(5.)
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


class Adaptive(Predictor):
    """``v̂_k = v_j + γ · (k−j) · s_j``, with the slope ``s_j = (v_j − v_i)/(j−i)`` and γ what the last two slopes share.

    ``γ = clip(⟨s_j, s_i⟩ / ⟨s_i, s_i⟩, 0, 1)``, one scalar per boundary tensor, in float32; s_i is the slope before
    s_j. Where changes do not continue, γ falls to 0 and the last value is held, so the estimate cannot run away.
    Keeps one value and one slope, costs about three passes over the tensor.
    """

    def __init__(self) -> None:
        self._last: tuple[int, torch.Tensor] | None = None
        self._slope: torch.Tensor | None = None  # change per step over the last interval
        self._gamma: torch.Tensor | None = None

    def observe(self, step: int, value: torch.Tensor) -> None:
        if self._last is not None:
            before_step, before = self._last
            slope = value - before
            if step - before_step > 1:
                slope /= step - before_step
            if self._slope is not None:
                old = self._slope.flatten().float()
                shared = torch.dot(slope.flatten().float(), old)
                norm = torch.dot(old, old)
                self._gamma = (shared / norm.clamp_min(_NOTHING)).clamp(0.0, 1.0).to(value.dtype)
            self._slope = slope
        self._last = (step, value)

    def estimate(self, step: int) -> torch.Tensor:
        assert self._last is not None
        last_step, last = self._last
        if self._slope is None or self._gamma is None:
            return last
        gamma = self._gamma * (step - last_step) if step - last_step > 1 else self._gamma
        return torch.addcmul(last, self._slope, gamma)


PREDICTORS: dict[str, type[Predictor]] = {"hold": Hold, "linear": Linear, "adaptive": Adaptive}
