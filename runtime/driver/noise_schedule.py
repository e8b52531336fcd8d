"""NoiseSchedule: the timesteps and noise levels of a trajectory's calls, read from the scheduler before they are made.

Legend: x_k is the latent that the pipeline passes at call k; α_k and σ_k are its scale and noise level;
z = x/α, and s = σ/α is the level. A deterministic sampler moves z linearly in s, with the slope ε. For flow matching
α = 1 and s = σ. runtime.driver.forecast predicts later latents from that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from partitioner.models.samplers import SECOND_SHARES, adds_noise, finish_of

# The variance of clean latents, given the prompt, that the correction of outputs assumes; measured on small denoisers,
# see docs/results/look-ahead.md. MULTISTEP_PRIOR: a multistep sampler extrapolates its estimates of the clean latent,
# so the correction must leave the estimate as it is. FLOW_PRIOR: flow matching with one call per step.
PRIOR, MULTISTEP_PRIOR, FLOW_PRIOR = 0.02, 0.0, 0.005


@dataclass(frozen=True)
class NoiseSchedule:
    """The timesteps, scales and noise levels of a trajectory's calls, call 0 first.

    Attributes:
        timesteps: as the scheduler has them.
        ratio: what the pipeline multiplies them by before it passes them on (Flux: 1/1000).
        scale: α of each call.
        level: s of each call.
        sensitivity: for each call the derivative of the denoiser's output by its latent, if clean latents were
            Gaussian; 0 where it is not known what the output means.
        multistep: whether a move of the latent combines several outputs, as DPM-Solver++ and UniPC do.
        second_share: None where a step is one call. For samplers of two calls per step, which begin steps at even
            calls, the weight of the second call's output in the step: 1/2 for Heun, 1 for the midpoint method.
        finish: how many last calls are to be run exactly, because they cannot be predicted well.
        flow: whether it is flow matching.
    """

    timesteps: torch.Tensor
    ratio: float
    scale: tuple[float, ...]
    level: tuple[float, ...]
    sensitivity: tuple[float, ...]
    multistep: bool = False
    second_share: float | None = None
    finish: int = 0
    flow: bool = False

    @property
    def calls(self) -> int:
        """How many calls the trajectory has."""
        return len(self.level)

    def expects(self, call: int, timestep: float) -> bool:
        """Whether ``timestep`` is what the pipeline passes at ``call`` by this schedule."""
        if call >= self.calls:
            return False
        wanted = float(self.timesteps[call]) * self.ratio
        return abs(timestep - wanted) <= 1e-2 * max(abs(wanted), 1e-3)

    def timestep(self, call: int, like: torch.Tensor) -> torch.Tensor:
        """The timestep argument of a call, with the shape, dtype and device of ``like``."""
        value = self.timesteps[call].to(device=like.device)
        if self.ratio != 1.0:
            value = value.to(torch.float32) * self.ratio
        return value.to(like.dtype).expand(like.shape).contiguous()


def noise_schedule_of(scheduler: Any, first_timestep: float) -> NoiseSchedule | None:
    """Read the noise schedule of a trajectory from a diffusers scheduler.

    Args:
        scheduler: after its set_timesteps.
        first_timestep: what the trajectory's first call passes; in image-to-image it is not the scheduler's first.

    Returns:
        The schedule; None where there is none to rely on: no scheduler, a sampler that adds noise, or a timestep that
        is not one of the scheduler's.

    >>> from diffusers import DDIMScheduler
    >>> scheduler = DDIMScheduler()
    >>> scheduler.set_timesteps(4)
    >>> noise_schedule_of(scheduler, 500.0).timesteps
    tensor([500, 250,   0])
    """
    timesteps = getattr(scheduler, "timesteps", None)
    if not isinstance(timesteps, torch.Tensor) or timesteps.dim() != 1 or len(timesteps) == 0:
        return None
    if is_stochastic(scheduler):
        return None
    name = type(scheduler).__name__
    values = timesteps.detach().to("cpu", torch.float64)
    second_share = SECOND_SHARES.get(name)
    found = _start(values, first_timestep, every=1 if second_share is None else 2)
    if found is None:
        return None
    first, ratio = found
    coordinates = _coordinates(scheduler, values)
    if coordinates is None:
        return None
    scale, level = (tuple(values[first:]) for values in coordinates)
    multistep = "Multistep" in name and getattr(scheduler.config, "solver_order", 2) > 1
    flow = is_flow(scheduler)
    prior = MULTISTEP_PRIOR if multistep else FLOW_PRIOR if flow and second_share is None else PRIOR
    sensitivity = tuple(_sensitivity(scheduler, a, s, prior) for a, s in zip(scale, level, strict=True))
    timesteps = timesteps.detach().cpu()[first:]
    return NoiseSchedule(timesteps, ratio, scale, level, sensitivity, multistep, second_share, finish_of(name), flow)


def is_stochastic(scheduler: Any) -> bool:
    """Whether a diffusers scheduler, as it is configured, adds fresh noise in every step."""
    return adds_noise(type(scheduler).__name__) or "sde" in str(getattr(scheduler.config, "algorithm_type", ""))


def _start(values: torch.Tensor, timestep: float, every: int) -> tuple[int, float] | None:
    """(index of the first call, ratio) of a trajectory that may start in the middle, as in image-to-image.

    It starts at the first equal timestep that is the first of its step. If both ratios fit (the last timestep of flow
    matching may equal its first one over 1000), the earlier start counts. every: calls per step.
    """
    found = []
    for ratio in (1.0, 1e-3):
        near = (values * ratio - timestep).abs() <= 1e-2 * max(abs(timestep), 1e-3)
        starts = near[::every].nonzero()
        if len(starts):
            found.append((every * int(starts[0]), ratio))
    return min(found, default=None)


def _coordinates(scheduler: Any, timesteps: torch.Tensor) -> tuple[list[float], list[float]] | None:
    """(α, s) of every call; None where the scheduler has neither sigmas nor alphas_cumprod."""
    sigmas = getattr(scheduler, "sigmas", None)
    if isinstance(sigmas, torch.Tensor) and len(sigmas) > len(timesteps) - 1:
        level = sigmas.detach().to("cpu", torch.float64)[: len(timesteps)].clone()
        between = getattr(scheduler, "sigmas_interpol", None)  # where the second calls of DPM2 are
        if between is not None:
            level[1::2] = between.detach().to("cpu", torch.float64)[1 : len(timesteps) : 2]
        scale = torch.ones_like(level) if is_flow(scheduler) else (1 + level**2).rsqrt()
        return scale.tolist(), level.tolist()
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(alphas, torch.Tensor):
        return None
    kept = alphas.detach().to("cpu", torch.float64)[timesteps.round().long().clamp(0, len(alphas) - 1)]
    return kept.sqrt().tolist(), ((1 - kept) / kept).sqrt().tolist()


def is_flow(scheduler: Any) -> bool:
    """Whether a diffusers scheduler, as it is configured, expects a denoiser that predicts a flow."""
    return "FlowMatch" in type(scheduler).__name__ or bool(getattr(scheduler.config, "use_flow_sigmas", False))


def _sensitivity(scheduler: Any, scale: float, level: float, prior: float) -> float:
    """d(output)/d(latent) of the optimal denoiser for Gaussian clean latents of variance p = ``prior``.

    The optimal output is linear in x. Predicting ε: E[ε|x] = σ·x / (α²·p + σ²); v, the clean sample and flow likewise.
    """
    if is_flow(scheduler):  # x = (1-σ)x0 + σε, output ε - x0
        clean, noise = 1 - level, level
        shared = noise - clean * prior
    else:
        clean, noise = scale, scale * level
        outputs = {"epsilon": noise, "v_prediction": clean * noise * (1 - prior), "sample": clean * prior}
        shared = outputs.get(getattr(scheduler.config, "prediction_type", ""), 0.0)
    spread = clean**2 * prior + noise**2
    return shared / spread if spread > 0 else 0.0
