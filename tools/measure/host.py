"""Measures what an engine takes of the host in a steady denoiser call, beside the denoiser's own operators.

    python -m tools.measure host [--mode lookahead|async|exact] [--layout sd15|sdxl] [--components 2]
                                 [--generations 10] [--json]

The denoiser computes next to nothing, the best estimate for Gaussian latents and a little beside it, so that look-ahead
is never refused. With --layout it is a UNet with the modules of Stable Diffusion 1.5's or XL's and 4 to 16 channels, so
that what grows with their number shows. All ranks take turns in one thread, under guidance in one call, with DDIM and
30 steps. Printed are the time of that thread on its processor (ms) in calls 12 to 26, the least and the median, by
turns with that of the module alone; of an engine's calls also until the other ranks have their commands, since they
have nothing to do before; and how many of torch's operators an engine's call has, and a module's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from partitioner.graph.torch_private.dispatch import TorchDispatchMode
from partitioner.planning.compile import compile
from partitioner.planning.options import PlanOptions
from partitioner.search.mode import MODES, Mode
from runtime.engine import Engine
from runtime.options import EngineOptions
from runtime.worker.commands import RankCommand
from tools.command import command
from tools.measure.layouts import LAYOUTS, PROMPT, SAMPLE, UNet

STEPS, FIRST, LAST = 30, 12, 26
ROLES = {"sample": "latent", "timestep": "timestep", "prompt": "prompt"}
Denoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Tiny(nn.Module):
    """Denoises (rows, 8, 8) by noise levels alone, and a little by a prompt of (rows, 4, 8)."""

    def __init__(self, kept: torch.Tensor) -> None:
        """kept: what share of the clean latent's square is left, by timestep."""
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(8))
        self.register_buffer("answer", (1 - kept).sqrt() / (0.065**2 * kept + 1 - kept))

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        x = sample
        for layer in self.layers:
            x = torch.tanh(layer(x)) + x
        beside = torch.tanh(x + prompt.mean((1, 2), keepdim=True))
        answers: Any = self.answer
        answer: torch.Tensor = answers[timestep.reshape(-1)[:1].long()]
        return sample * answer + 0.003 * beside


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts torch's operators."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def generate(scheduler: Any, call: Denoise, shape: tuple[int, ...]) -> None:
    """A generation of 30 steps. shape: of a row."""
    scheduler.set_timesteps(STEPS)
    latent = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            without, having = call(torch.cat([latent, latent]), timestep).chunk(2)
            latent = scheduler.step(without + 1.5 * (having - without), timestep, latent).prev_sample


def looked_at(measure: Callable[[Callable[[], torch.Tensor]], tuple[torch.Tensor, float]], call: Denoise) -> Any:
    """(what makes a call as ``call`` does, the figures of its calls so far)."""
    figures: list[float] = []

    def made(latent: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        output, figure = measure(lambda: call(latent, timestep))
        figures.append(figure)
        return output

    return made, figures


def _timed(call: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, float]:
    begin = time.thread_time()
    output = call()
    return output, (time.thread_time() - begin) * 1e3


def _told(call: Callable[[], torch.Tensor], commands: Commands) -> tuple[torch.Tensor, float]:
    begin = time.thread_time()
    output = call()
    return output, (commands.last - begin) * 1e3


def _counted(call: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, float]:
    with Operators() as operators:
        output = call()
    return output, operators.count


class Commands:
    """Notes when the ranks of an engine beside the driver's were last told what to do, in ms of the thread's time."""

    def __init__(self, engine: Engine) -> None:
        self.last = 0.0
        self._command = engine._ranks.command
        engine._ranks.command = self._noted  # type: ignore[method-assign]

    def _noted(self, rank: int, command: RankCommand) -> None:
        self._command(rank, command)
        self.last = time.thread_time()


def measure(
    mode: Mode | Literal["exact"], components: int, generations: int, layout: str | None = None
) -> dict[str, Any]:
    """The figures by name. layout: one of LAYOUTS; None: a denoiser of 10 modules."""
    from diffusers import DDIMScheduler

    torch.set_num_threads(1)
    torch.manual_seed(0)
    scheduler = DDIMScheduler(clip_sample=False)
    module = (Tiny(scheduler.alphas_cumprod) if layout is None else UNet(layout)).eval()
    shape = (8, 8) if layout is None else SAMPLE
    prompt = torch.randn(2, *PROMPT)
    example = {"sample": torch.randn(2, *shape), "timestep": torch.tensor(1), "prompt": prompt}
    planned: Mode = "async" if mode == "exact" else mode
    plan = compile(
        module, example, ROLES, components, device="cpu", options=PlanOptions(branches=1, mode=planned, force=True)
    )
    found: dict[str, Any] = {"mode": mode, "components": components, "layout": layout}
    options = EngineOptions(transport="emulation", exact=mode == "exact")
    with Engine(module, plan, options, scheduler=lambda: scheduler) as engine:
        calls: dict[str, Denoise] = {
            "engine": lambda latent, timestep: engine(latent, timestep, prompt)[0],
            "module": lambda latent, timestep: module(latent, timestep, prompt),
        }
        for name, call in calls.items():
            counted, counts = looked_at(_counted, call)
            generate(scheduler, call, shape)
            generate(scheduler, counted, shape)
            found[f"{name}_operators"] = statistics.median(counts[FIRST:LAST])
        times: dict[str, list[float]] = {name: [] for name in (*calls, *["commands"] * (components > 1))}
        commands = Commands(engine)
        for _ in range(generations):
            for name, call in calls.items():
                timed, ms = looked_at(_timed, call)
                generate(scheduler, timed, shape)
                times[name] += ms[FIRST:LAST]
            if components > 1:
                told, ms = looked_at(lambda call: _told(call, commands), calls["engine"])
                generate(scheduler, told, shape)
                times["commands"] += ms[FIRST:LAST]
        found["exact_reasons"] = dict(engine.stats.exact_reasons)
    for name, ms in times.items():
        found |= {f"{name}_least_ms": min(ms), f"{name}_median_ms": statistics.median(ms)}
    return found


@command("tools.measure.host")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit code 0."""
    made = argparse.ArgumentParser(prog="python -m tools.measure host", description=__doc__.split("\n")[0])
    made.add_argument("--mode", choices=[*MODES, "exact"], default="lookahead", help="default: lookahead")
    made.add_argument("--layout", choices=LAYOUTS, help="a UNet of that model's modules, which look-ahead may refuse")
    made.add_argument("--components", type=int, default=2, metavar="N", help="how many there are (default: 2)")
    made.add_argument("--generations", type=int, default=10, metavar="N", help="that are timed (default: 10)")
    made.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    options = made.parse_args(argv)
    if options.generations < 1 or options.components < 1:
        made.error("--generations and --components are at least 1")
    found = measure(options.mode, options.components, options.generations, options.layout)
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    for name in ("engine", "module"):
        least, median, count = (found[f"{name}_{what}"] for what in ("least_ms", "median_ms", "operators"))
        print(f"{name}: {count:g} operators, {least:.2f} ms at least, median {median:.2f} ms")
    if options.components > 1:
        least, median = found["commands_least_ms"], found["commands_median_ms"]
        print(f"until the other ranks have their commands: {least:.2f} ms at least, median {median:.2f} ms")
    print(f"exact calls: {', '.join(f'{count} by {why}' for why, count in found['exact_reasons'].items())}")
    return 0
