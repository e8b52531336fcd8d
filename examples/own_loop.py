"""A module of one's own in a hand-written sampling loop: look-ahead and exact steps beside the module itself.

python examples/own_loop.py

Two processes of this machine share the module. The weights are random, so what is sampled means nothing; what is shown
is how close look-ahead comes to the module's own output.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import DDIMScheduler
from torch import nn

from partitioner import Plan, compile
from runtime import Engine, EngineOptions

WIDTH, TOKENS, STEPS = 256, 64, 30
Denoise = Callable[..., tuple[torch.Tensor, ...]]


class Block(nn.Module):
    """A residual MLP whose input the timestep scales and the context shifts."""

    def __init__(self) -> None:
        super().__init__()
        self.condition = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, hidden: torch.Tensor, time: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return hidden + 0.1 * self.mlp(hidden * (1 + time) + self.condition(context)[:, None])


class Denoiser(nn.Module):
    """x: [rows, tokens, width] latent; t: scalar timestep; context: [rows, width]. Returns the noise as a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(8))

    def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor]:
        time = torch.sin(t.to(x.dtype) / 1000)
        hidden = x
        for block in self.blocks:
            hidden = block(hidden, time, context)
        return (hidden,)


def make_plan(denoiser: nn.Module) -> Plan:
    """Plan one branch of two components for two cores of a CPU."""
    example = {"x": torch.zeros(2, TOKENS, WIDTH), "t": torch.tensor(999), "context": torch.zeros(2, WIDTH)}
    roles = {"x": "latent", "t": "timestep", "context": "prompt"}
    return compile(denoiser, example, roles, devices=2, device="cpu")


def sample(denoise: Denoise, scheduler: DDIMScheduler) -> torch.Tensor:
    """The loop: whatever is called like the denoiser is used like the denoiser."""
    made = torch.Generator().manual_seed(0)
    latents = torch.randn(2, TOKENS, WIDTH, generator=made)
    context = torch.randn(2, WIDTH, generator=made)
    scheduler.set_timesteps(STEPS)
    for t in scheduler.timesteps:
        (noise,) = denoise(x=latents, t=t, context=context)
        latents = scheduler.step(noise, t, latents).prev_sample
    return latents


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    denoiser, scheduler = Denoiser().eval(), DDIMScheduler(clip_sample=False)
    plan = make_plan(denoiser)
    with torch.no_grad():
        alone = sample(denoiser, scheduler)
    for name, options in (("exact", EngineOptions(exact=True)), ("look-ahead", EngineOptions())):
        with Engine(denoiser, plan, options, scheduler=lambda: scheduler) as engine:
            latents = sample(engine, scheduler)
            stats = engine.stats
        error = float((latents - alone).norm() / alone.norm())
        print(f"{name:10}  {stats.exact_steps} of {stats.steps} calls exact, relative error {error:.1e}")


if __name__ == "__main__":
    main()
