"""Look-ahead: from the latents of past denoiser calls to those of later ones.

Legend: call k; x_k the latent that the pipeline passes at call k; α_k, σ_k its scale and noise level;
z = x/α, s = σ/α. A deterministic sampler moves z linearly in s with slope ε (and x linearly in σ, for flow matching:
then α = 1 and s = σ), so the slope of the last move is the effective ε, guidance and solver order included, and
extrapolating it predicts later latents. Nothing of the sampler's insides is needed.
Source: measured on small denoisers, see docs/lookahead.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from partitioner.samplers import adds_noise

# Variance of clean latents that the correction assumes, once the prompt is known. A multistep sampler extrapolates what
# it took for the clean latent; for it that is kept as it was made. See docs/lookahead.md.
PRIOR, MULTISTEP_PRIOR = 0.02, 0.0


@dataclass(frozen=True)
class Course:
    """The timesteps, scales and levels of a trajectory's calls, call 0 first.

    timesteps: as the scheduler has them; ratio: what the pipeline multiplies them with (Flux: 1/1000).
    scale: α. level: s. sensitivity: by how much the denoiser's output moves with its latent, were clean latents
    Gaussian; 0 where the output's meaning is not known. multistep: whether a move depends on several outputs, so that
    an error in one alternates from move to move.
    """

    timesteps: torch.Tensor
    ratio: float
    scale: tuple[float, ...]
    level: tuple[float, ...]
    sensitivity: tuple[float, ...]
    multistep: bool = False

    @property
    def calls(self) -> int:
        return len(self.level)

    def expects(self, call: int, timestep: float) -> bool:
        """Whether ``timestep`` is what the pipeline was to pass at ``call``."""
        if call >= self.calls:
            return False
        wanted = float(self.timesteps[call]) * self.ratio
        return abs(timestep - wanted) <= 1e-2 * max(abs(wanted), 1e-3)

    def timestep(self, call: int, like: torch.Tensor) -> torch.Tensor:
        """The timestep argument of a later call, in the form of the present one."""
        value = self.timesteps[call].to(device=like.device)
        if self.ratio != 1.0:
            value = value.to(torch.float32) * self.ratio
        return value.to(like.dtype).expand(like.shape).contiguous()


def course_of(scheduler: Any, first_timestep: float) -> Course | None:
    """The course of a trajectory whose first call passes ``first_timestep``, read from a diffusers scheduler.

    None where it cannot be known: no scheduler, a stochastic sampler, timesteps that are not the scheduler's.
    """
    timesteps = getattr(scheduler, "timesteps", None)
    if not isinstance(timesteps, torch.Tensor) or timesteps.dim() != 1 or len(timesteps) == 0:
        return None
    if is_stochastic(scheduler):
        return None
    values = timesteps.detach().to("cpu", torch.float64)
    found = _start(values, first_timestep)
    if found is None:
        return None
    first, ratio = found
    coordinates = _coordinates(scheduler, values)
    if coordinates is None:
        return None
    scale, level = (tuple(values[first:]) for values in coordinates)
    multistep = "Multistep" in type(scheduler).__name__ and getattr(scheduler.config, "solver_order", 2) > 1
    prior = MULTISTEP_PRIOR if multistep else PRIOR
    sensitivity = tuple(_sensitivity(scheduler, a, s, prior) for a, s in zip(scale, level, strict=True))
    return Course(timesteps.detach().cpu()[first:], ratio, scale, level, sensitivity, multistep)


def is_stochastic(scheduler: Any) -> bool:
    """Whether a diffusers scheduler, as it is configured, adds fresh noise in every step."""
    return adds_noise(type(scheduler).__name__) or "sde" in str(getattr(scheduler.config, "algorithm_type", ""))


def _start(values: torch.Tensor, timestep: float) -> tuple[int, float] | None:
    """(index of the first call, ratio): a start in the middle (img2img) is at the first equal timestep.

    Where both ratios fit (flow matching's last timestep is its first one over 1000), the earlier start counts.
    """
    found = []
    for ratio in (1.0, 1e-3):
        near = (values * ratio - timestep).abs() <= 1e-2 * max(abs(timestep), 1e-3)
        if bool(near.any()):
            found.append((int(near.nonzero()[0]), ratio))
    return min(found, default=None)


def _coordinates(scheduler: Any, timesteps: torch.Tensor) -> tuple[list[float], list[float]] | None:
    """(α, s) of every call."""
    sigmas = getattr(scheduler, "sigmas", None)
    if isinstance(sigmas, torch.Tensor) and len(sigmas) > len(timesteps) - 1:
        level = sigmas.detach().to("cpu", torch.float64)[: len(timesteps)]
        scale = torch.ones_like(level) if _is_flow(scheduler) else (1 + level**2).rsqrt()
        return scale.tolist(), level.tolist()
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(alphas, torch.Tensor):
        return None
    kept = alphas.detach().to("cpu", torch.float64)[timesteps.round().long().clamp(0, len(alphas) - 1)]
    return kept.sqrt().tolist(), ((1 - kept) / kept).sqrt().tolist()


def _is_flow(scheduler: Any) -> bool:
    return "FlowMatch" in type(scheduler).__name__ or bool(getattr(scheduler.config, "use_flow_sigmas", False))


def _sensitivity(scheduler: Any, scale: float, level: float, prior: float) -> float:
    """d(output)/d(latent) for clean latents of variance ``prior``: of E[ε|x] = σx/(α²s²+σ²) and its like."""
    if _is_flow(scheduler):  # x = (1-σ)x0 + σε, output ε - x0
        clean, noise = 1 - level, level
        shared = noise - clean * prior
    else:
        clean, noise = scale, scale * level
        outputs = {"epsilon": noise, "v_prediction": clean * noise * (1 - prior), "sample": clean * prior}
        shared = outputs.get(getattr(scheduler.config, "prediction_type", ""), 0.0)
    spread = clean**2 * prior + noise**2
    return shared / spread if spread > 0 else 0.0


def corrected(output: torch.Tensor, missed: torch.Tensor, sensitivity: float) -> torch.Tensor:
    """The output that the denoiser would have made of a latent that is ``missed`` away from the one it was given.

    To first order, by the sensitivity of a Gaussian: an output and a latent that differ in one dimension only
    (learned variances behind the output, an image behind the latent) share its first entries; any others are left.
    """
    unequal = [d for d in range(output.dim()) if output.dim() == missed.dim() and output.shape[d] != missed.shape[d]]
    if output.dim() != missed.dim() or len(unequal) > 1:
        return output
    made = output.clone()
    part, moved = made, missed
    for d in unequal:
        shared = min(output.shape[d], missed.shape[d])
        part, moved = part.narrow(d, 0, shared), moved.narrow(d, 0, shared)
    part += (sensitivity * moved).to(part.dtype)
    return made


class Forecast:
    """Predicts one latent input of later calls from those of past calls.

    The slope of later moves is that of the last one plus γ times its change per move. Of a multistep sampler it is the
    mean of the last two, and its change that from the two before them: what alternates cancels in both. γ, one per row
    of the batch, is what would have predicted the last two latents best, as far ahead as now (least squares, between 0
    and 1, or 1/2 of a multistep sampler; 0 until known).

    Elements that did not change in the last move (an image or a mask beside the latent) are taken to stay.
    """

    def __init__(self, course: Course, reach: int) -> None:
        """reach: how many calls ahead ``predict`` is asked for at most; as much of the past is kept."""
        self._course = course
        self._kept = reach + (5 if course.multistep else 4)
        self._calls = 0
        self._latents: dict[int, torch.Tensor] = {}  # by call, as passed
        self._z: dict[int, torch.Tensor] = {}
        self._slope: dict[int, torch.Tensor] = {}  # of the move to that call
        self._before: torch.Tensor | None = None  # the latent at the last other level
        self._predicted: dict[int, torch.Tensor] = {}  # by call, the earliest prediction

    def observe(self, latent: torch.Tensor) -> None:
        """Take the latent of the next call."""
        call = self._calls
        z = latent.float() / self._course.scale[call]
        slope = torch.zeros_like(z)
        if call > 0:
            distance = self._course.level[call] - self._course.level[call - 1]
            # the second call of a two-call sampler may stand at the level of the first: its slope is the last one
            moved = abs(distance) > 1e-9
            slope = (z - self._z[call - 1]) / distance if moved else self._slope[call - 1]
            if moved:
                self._before = self._latents[call - 1]
        self._latents[call], self._z[call], self._slope[call] = latent.detach().clone(), z, slope
        for kept in (self._latents, self._z, self._slope, self._predicted):
            kept.pop(call - self._kept, None)
        self._calls += 1

    def predict(self, call: int) -> torch.Tensor:
        """The latent of a later call; at least one has been observed."""
        now = self._calls - 1
        fixed, change = self._terms(now, call)
        z = fixed + self._damping(now, call - now) * change
        predicted = (z * self._course.scale[call]).to(self._latents[now].dtype)
        if self._before is not None:
            same = self._latents[now] == self._before
            predicted = torch.where(same, self._latents[now], predicted)
        self._predicted.setdefault(call, predicted)
        return predicted

    def missed(self) -> torch.Tensor | None:
        """The latent observed last minus its earliest prediction, which the first component worked on; None without."""
        now = self._calls - 1
        predicted = self._predicted.get(now)
        return None if predicted is None else self._latents[now].float() - predicted.float()

    def _terms(self, now: int, call: int) -> tuple[torch.Tensor, torch.Tensor]:
        """ẑ_call = fixed + γ·change, from what was known at call ``now``."""
        level = self._course.level
        base, change, age = self._slopes(now)
        fixed = self._z[now] + base * (level[call] - level[now])
        weight = sum((m + age) * (level[now + m + 1] - level[now + m]) for m in range(call - now))
        return fixed, change * weight

    def _slopes(self, now: int) -> tuple[torch.Tensor, torch.Tensor, float]:
        """The slope that was known at call ``now``, its change per move (0 until known), and by how many moves the next
        one is later."""
        last = self._slope[now]
        none = torch.zeros_like(last)
        if not self._course.multistep:
            return last, last - self._slope[now - 1] if now >= 2 else none, 1.0
        if now < 2:
            return last, none, 1.0
        mean = (last + self._slope[now - 1]) / 2
        if now < 4:
            return mean, none, 1.5
        return mean, (mean - (self._slope[now - 2] + self._slope[now - 3]) / 2) / 2, 1.5

    def _damping(self, now: int, ahead: int) -> torch.Tensor:
        rows = self._latents[now].shape[0]
        shape = (rows,) + (1,) * (self._latents[now].dim() - 1)
        shared = torch.zeros(rows, device=self._latents[now].device)
        norm = torch.zeros_like(shared)
        for known in (now - 1, now):
            if known - ahead < 2:
                continue
            fixed, change = self._terms(known - ahead, known)
            missed = (self._z[known] - fixed).flatten(1)
            shared += (missed * change.flatten(1)).sum(1)
            norm += (change.flatten(1) ** 2).sum(1)
        gamma = torch.where(norm > 0, shared / norm.clamp_min(1e-30), torch.zeros_like(norm))
        gamma = gamma.clamp(0.0, 0.5 if self._course.multistep else 1.0)
        return gamma.view(shape)
