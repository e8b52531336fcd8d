"""SamplerAnswers: what a sampler does, read off a trajectory of made-up latents and outputs.

Letters are those of partitioner.models.sampler. Every entry of a latent is a trajectory of its own, for a scheduler
treats all entries alike:

    entry 0     c = 1/2, ε = 0      shows a_k
    entry 1     c = 0, ε = 1        shows b_k
    entries 2-3 c = 0, ε = 0        equal unless noise is added, 0 unless something else is
    entry 4     c = 1/10, other ε at every call: what W says of it, if the sampler is linear
    entry 5     c = 1/10, ε = 7/10: what entries 0 and 1 say of it, if the sampler is linear
    entry 6+j   c = 0, ε = 1/1000 at call j only: column j of W
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from partitioner.models.sampler import Sampler

CLEAN, NUDGE = 0.5, 1e-3
OTHER, MIXED, FIRST = 4, 5, 6  # entries
NEAR = 2e-3  # of the largest value: what the float32 arithmetic of schedulers may add up to
OFF_COURSE = "its steps do not follow a line between the picture and the noise, whatever the outputs mean"


@dataclass
class SamplerAnswers:
    """What a probe's trajectory shows.

    Attributes:
        passed: p of every call, (calls, entries).
        noise: the noise that every output means, (calls, entries).
        end: the last latent, (entries,).
        meaning: of the outputs.
    """

    passed: torch.Tensor
    noise: torch.Tensor
    end: torch.Tensor
    meaning: str

    def sampler(self) -> Sampler:
        """What they say of the sampler, if outputs mean that."""
        calls = len(self.passed)
        if not self.passed.isfinite().all():
            return Sampler(calls, refusal=OFF_COURSE)
        if not torch.equal(self.passed[:, 2], self.passed[:, 3]):
            return Sampler(calls, noise=True, refusal="it adds noise of its own in its steps")
        clean, noisy = self.passed[:, 0] / CLEAN, self.passed[:, 1]
        total = clean + noisy if "flow" in self.meaning else clean**2 + noisy**2
        parts = torch.stack([clean, noisy])
        if not bool(((total - 1).abs() < NEAR).all() & (parts > -NEAR).all()):
            return Sampler(calls, refusal=OFF_COURSE)
        if "flow" not in self.meaning and float(clean.min()) < 1e-5:
            return Sampler(
                calls, refusal="its first latent has no part of the picture, so that no line goes through it"
            )
        made = Sampler(calls, False, self.meaning, tuple(clean.tolist()), _merged(noisy, clean, "flow" in self.meaning))
        if not self._is_linear(made):
            return replace(made, refusal="its latents are not linear in the denoiser's outputs")
        return replace(made, moves=self._moves(made), **self._structure(made))

    def _weights(self, made: Sampler) -> torch.Tensor:
        """W, (calls, calls)."""
        scale = torch.tensor(made.scale, dtype=torch.float64)[:, None]
        return self.passed[:, FIRST:] / scale / NUDGE

    def _moves(self, made: Sampler) -> tuple[tuple[float, ...], ...]:
        scale = 1.0 if made.flow else float(self.end[0]) / CLEAN
        last = self.end[None, FIRST:] / scale / NUDGE
        moves = torch.cat([self._weights(made), last]).diff(dim=0)
        rounding = 1e-5 * float(moves.abs().max())
        found = []
        for call, move in enumerate(moves):
            weights = move[: call + 1].flip(0)
            count = int((weights.abs() > rounding).nonzero().max()) + 1 if bool((weights.abs() > rounding).any()) else 1
            found.append(tuple(weights[:count].tolist()))
        return tuple(found)

    def _is_linear(self, made: Sampler) -> bool:
        outputs = self.noise[:, OTHER] - (CLEAN / 5 if made.flow else 0.0)
        start = self.passed[0, OTHER] / made.scale[0]
        wanted = start + self._weights(made) @ outputs
        found = self.passed[:, OTHER] / torch.tensor(made.scale, dtype=torch.float64)
        least = float(wanted.abs().max()) * NEAR
        mixed = CLEAN / 5 * self.passed[:, 0] / CLEAN + 0.7 * self.passed[:, 1]
        natural = (self.passed[:, MIXED] - mixed).abs().max() <= NEAR
        return bool(((wanted - found).abs() <= least).all() & (self.passed[:, 2].abs() <= least).all() & natural)

    def _structure(self, made: Sampler) -> dict[str, Any]:
        """The fields of Sampler that W tells."""
        weights, level = self._weights(made), torch.tensor(made.level, dtype=torch.float64)
        moves, distance = weights.diff(dim=0), level.diff()
        rounding = 1e-5 * float(weights.abs().max())
        own = torch.eye(len(level), dtype=torch.float64)  # own[j]: all of it from the output of call j

        def same(found: torch.Tensor, wanted: torch.Tensor, distance: torch.Tensor) -> bool:
            return bool(((found - wanted).abs() <= NEAR * distance.abs() + rounding).all())

        first_calls = [same(move, way * own[k], way) for k, (move, way) in enumerate(zip(moves, distance, strict=True))]
        if all(first_calls):
            return {}
        steps, longer = weights[2::2] - weights[:-2:2], level[2::2] - level[:-2:2]
        if len(steps) and all(first_calls[::2]):
            w = round(float(steps[0, 1] / longer[0]), 3)
            shared = [(1 - w) * own[2 * m] + w * own[2 * m + 1] for m in range(len(steps))]
            if all(same(step, way * share, way) for step, way, share in zip(steps, longer, shared, strict=True)):
                return {"second_share": w}
        moved = distance.abs() > rounding
        return {"multistep": True, "gain": float((moves.abs().sum(1)[moved] / distance[moved].abs()).max())}


def _merged(noisy: torch.Tensor, clean: torch.Tensor, flow: bool) -> tuple[float, ...]:
    """b of every call, the same where two calls in a row are at one level up to rounding."""
    values = noisy.tolist()
    scale = [1.0] * len(values) if flow else clean.tolist()
    for k in range(1, len(values)):
        before, now = values[k - 1] / scale[k - 1], values[k] / scale[k]
        if abs(now - before) <= 1e-4 * abs(now):
            values[k] = before * scale[k]
    return tuple(values)
