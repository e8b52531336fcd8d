"""NoiseSchedule: the timesteps and noise levels of a trajectory's calls, known before they are made.

Legend: x_k is the latent that the pipeline passes at call k; α_k and σ_k are its scale and noise level;
z = x/α, and s = σ/α is the level. A deterministic sampler moves z linearly in s, with the slope ε. For flow matching
α = 1 and s = σ. runtime.driver.forecast predicts later latents from that. partitioner.models.sampler_probe has found α,
σ and what else is said of the sampler here by trying its step out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from partitioner.models.sampler import Sampler
from partitioner.models.sampler_probe import probe
from partitioner.models.samplers import FINISH
from runtime.driver.timesteps import Timesteps, timesteps_of

# How much of a change of z, at a level s, the best denoiser takes for one of the clean latent: κ/(κ + s), with this κ.
# Measured on small denoisers, see docs/results/look-ahead.md. A multistep sampler extrapolates its estimates of the
# clean latent, so there the correction must leave the estimate as it is: κ = 0.
SPREAD, MULTISTEP_SPREAD = 0.065, 0.0


@dataclass(frozen=True)
class NoiseSchedule:
    """The timesteps, scales and noise levels of a trajectory's calls, call 0 first.

    Attributes:
        timesteps: of the calls.
        scale: α of each call.
        level: s of each call.
        sensitivity: for each call the derivative of the denoiser's output by its latent, as SPREAD says.
        multistep: whether a move of the latent combines several outputs, as DPM-Solver++ and UniPC do.
        second_share: None where a step is one call. For samplers of two calls per step, which begin steps at even
            calls, the weight of the second call's output in the step: 1/2 for Heun, 1 for the midpoint method.
        flow: whether it is flow matching.
        gain: how much larger than an error in all outputs the error of a move can be.
        meaning: what outputs mean, see partitioner.models.sampler.
        moves: of the move of z after every call, the weights of the slopes that outputs mean, the call's own first.
        stiffness: for each call the derivative of that slope by the latent, as ``sensitivity`` is the output's.
    """

    timesteps: Timesteps
    scale: tuple[float, ...]
    level: tuple[float, ...]
    sensitivity: tuple[float, ...]
    multistep: bool = False
    second_share: float | None = None
    flow: bool = False
    gain: float = 1.0
    meaning: str = "epsilon"
    moves: tuple[tuple[float, ...], ...] = ()
    stiffness: tuple[float, ...] = ()

    @property
    def calls(self) -> int:
        """How many calls the trajectory has."""
        return len(self.level)

    def slope_of(self, output: torch.Tensor, latent: torch.Tensor, call: int) -> torch.Tensor:
        """The slope of the move that a sampler of one step makes from a call's latent and output."""
        scale, noise = self.scale[call], self.scale[call] * self.level[call]
        if self.meaning == "v_prediction":
            return scale * output + noise * latent
        if self.meaning == "sample":
            return (latent - scale * output) / noise
        return -output if self.meaning == "reversed_flow" else output

    def after(self, call: int) -> NoiseSchedule:
        """That of the calls from ``call`` on, of a sampler of one call per step."""
        return replace(
            self,
            timesteps=self.timesteps.after(call),
            scale=self.scale[call:],
            level=self.level[call:],
            sensitivity=self.sensitivity[call:],
            moves=tuple(_from_here(weights, later) for later, weights in enumerate(self.moves[call:])),
            stiffness=self.stiffness[call:],
        )

    @property
    def finish(self) -> int:
        """How many last calls are to be run exactly, because they cannot be predicted well."""
        return 0 if self.second_share is None else FINISH


def noise_schedule_of(scheduler: Any, first_timestep: float, *, guarded: bool = True) -> NoiseSchedule | str:
    """The noise schedule of a trajectory that a diffusers scheduler makes.

    Args:
        scheduler: after its set_timesteps; it is not changed.
        first_timestep: what the trajectory's first call passes; in image-to-image it is not the scheduler's first.
        guarded: whether it has to be known what errors of outputs count for.

    Returns:
        The schedule; where there is none to rely on the reason, as the end of a sentence.

    >>> from diffusers import DDIMScheduler
    >>> scheduler = DDIMScheduler(clip_sample=False)
    >>> scheduler.set_timesteps(4)
    >>> noise_schedule_of(scheduler, 500.0).timesteps.values
    tensor([500, 250,   0])
    """
    if not isinstance(getattr(scheduler, "timesteps", None), torch.Tensor):
        return "there is no scheduler with timesteps"
    sampler = probe(scheduler)
    refusal = sampler.refuses(guarded=guarded)
    if refusal is not None:
        return f"of the sampler ({type(scheduler).__name__}) later latents cannot be predicted: {refusal}"
    timesteps = timesteps_of(scheduler, first_timestep, every=1 if sampler.second_share is None else 2)
    if timesteps is None:
        return f"timestep {first_timestep:g} is none of the scheduler's"
    return _from(sampler, timesteps)


def _from(sampler: Sampler, timesteps: Timesteps) -> NoiseSchedule:
    first = timesteps.first
    spread = MULTISTEP_SPREAD if sampler.multistep else SPREAD
    return NoiseSchedule(
        timesteps=timesteps,
        scale=sampler.scale[first:],
        level=sampler.level[first:],
        sensitivity=tuple(_sensitivity(sampler, call, spread) for call in range(first, sampler.calls)),
        multistep=sampler.multistep,
        second_share=sampler.second_share,
        flow=sampler.flow,
        gain=sampler.gain,
        meaning=str(sampler.meaning),
        moves=tuple(_from_here(weights, later) for later, weights in enumerate(sampler.moves[first:])),
        stiffness=tuple(
            _sensitivity(sampler, call, spread, "flow" if sampler.flow else "epsilon")
            for call in range(first, sampler.calls)
        ),
    )


def _from_here(weights: tuple[float, ...], call: int) -> tuple[float, ...]:
    """A move's weights where calls before call 0 are not known: their slopes are taken to be the call's own."""
    known = weights[: call + 1]
    return (known[0] + sum(weights[call + 1 :]), *known[1:])


def _sensitivity(sampler: Sampler, call: int, spread: float, meaning: str | None = None) -> float:
    """d(output)/d(latent) where the clean estimate's share of a change of z is ``spread`` / (``spread`` + s)."""
    clean, noise = sampler.clean[call], sampler.noisy[call]
    both = spread * clean + noise
    shared = {
        "epsilon": 1.0,
        "v_prediction": clean - spread * noise,
        "sample": spread,
        "flow": 1.0 - spread,
        "reversed_flow": spread - 1.0,
    }[meaning or sampler.meaning or ""]
    return shared / both if both > 0 else 0.0
