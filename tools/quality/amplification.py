"""Measures what an error of one output is worth in the last latent, beside what the guard takes it for.

    python -m tools.quality.amplification --denoiser mmdit --sampler flow_shift3 --guidance 7.5 --steps 20

For every call but the first three: the sampler is given an output that is a tenth of the way to that for the latent
which the line through the two before foresees, at that call alone. Printed are the error of the last latent over that
of the call's slope (the median of the samples, nine tenths, the largest), the guard's figure for as large a guidance
scale (runtime.driver.amplification), and the largest over that.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from partitioner.errors import UsageError
from runtime.denoiser import denoiser_name
from runtime.driver.amplification import Amplification
from runtime.driver.noise_schedule import NoiseSchedule, noise_schedule_of
from tools.command import command
from tools.pages import be_quiet
from tools.quality.cells_cases import trained_denoisers
from tools.quality.measured_pipeline import MeasuredPipeline, shipped_pipeline
from tools.quality.samplers import SCHEDULERS, SamplingCase

PART = 0.1  # of the way
FIRST = 3  # the first call whose latent can be foreseen and missed

MakeOutput = Callable[[int, torch.Tensor, Callable[[torch.Tensor], torch.Tensor]], torch.Tensor]


class PerturbedSampling:
    """Samples that a pipeline makes together, with a denoiser of both halves in a call.

    Args:
        pipeline: of tools/trained, with its sampler.
        steps: of a generation.

    Attributes:
        known: the noise schedule.
        latents, outputs: of each call, as the denoiser has them.
        last: the latent at the end.
    """

    def __init__(self, pipeline: MeasuredPipeline, steps: int) -> None:
        self._pipeline, self._steps = pipeline, steps
        self.latents: list[torch.Tensor] = []
        self.outputs: list[torch.Tensor] = []
        self.last = self._run(self._recorded)
        timesteps = pipeline.pipe.scheduler.timesteps
        known = noise_schedule_of(pipeline.pipe.scheduler, float(timesteps[0]))
        if isinstance(known, str):
            raise UsageError(f"nothing is foreseen here: {known}")
        self.known: NoiseSchedule = known

    def _recorded(
        self, call: int, latent: torch.Tensor, denoise: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        self.latents.append(latent)
        self.outputs.append(denoise(latent))
        return self.outputs[-1]

    def _run(self, output: MakeOutput) -> torch.Tensor:
        """The last latent where ``output`` makes each call's output: of its number, its latent and the denoiser."""
        pipe = self._pipeline.pipe
        denoiser, calls = getattr(pipe, denoiser_name(pipe)), 0

        def replaced(first: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            name = next((name for name in ("hidden_states", "sample") if name in kwargs), None)
            latent = kwargs.pop(name) if name else first

            def denoise(latent: torch.Tensor) -> torch.Tensor:
                given: torch.Tensor = whole(latent, *args, **kwargs)[0]
                return given

            assert latent is not None
            calls += 1
            return (output(calls - 1, latent, denoise),)

        whole, denoiser.forward = denoiser.forward, replaced
        try:
            seeds = range(len(self._pipeline.prompts))
            made = pipe(
                prompt=list(self._pipeline.prompts),
                num_inference_steps=self._steps,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                output_type="latent",
                **self._pipeline.arguments,
            )
        finally:
            del denoiser.forward
        last: torch.Tensor = made.images
        return last

    def amplification(self, call: int) -> torch.Tensor:
        """By sample, the error of the last latent over that of a call's slope."""
        latent, changed = self.latents[call], self.outputs[call]

        def output(number: int, given: torch.Tensor, denoise: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
            nonlocal changed
            if number > call:
                return denoise(given)
            if number == call:
                changed = changed + PART * (denoise(self._foreseen(call)) - changed)
            return self.outputs[number] if number < call else changed

        last = self._run(output)
        error = self._slope(changed, latent, call) - self._slope(self.outputs[call], latent, call)
        return _rms(last - self.last) / _rms(error)

    def _foreseen(self, call: int) -> torch.Tensor:
        """The latent of a call on the line through the two before."""
        scale, level = self.known.scale, self.known.level
        before, last = (self.latents[number] / scale[number] for number in (call - 2, call - 1))
        slope = (last - before) / (level[call - 1] - level[call - 2])
        return (last + slope * (level[call] - level[call - 1])) * scale[call]

    def _slope(self, output: torch.Tensor, latent: torch.Tensor, call: int) -> torch.Tensor:
        """That the sampler is told, by both halves' outputs: the one without the prompt comes first."""
        without, having = self.known.slope_of(output[:, : latent.shape[1]], latent, call).chunk(2)
        slope: torch.Tensor = without + self._pipeline.arguments["guidance_scale"] * (having - without)
        return slope


def _rms(of: torch.Tensor) -> torch.Tensor:
    squares: torch.Tensor = of.flatten(1).square()
    return squares.mean(1).sqrt()


@command("tools.quality.amplification")
@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit code 0."""
    parser = _parser()
    options = parser.parse_args(argv)
    if not options.guidance > 1 or options.steps <= FIRST or options.samples < 1:
        parser.error(f"expected --guidance over 1, {FIRST + 1} --steps or more and one of --samples or more")
    be_quiet()
    torch.set_num_threads(1)
    pipeline = shipped_pipeline(options.denoiser, options.samples, options.samples, options.guidance)
    pipeline.use(SamplingCase(options.sampler, options.steps))
    sampling = PerturbedSampling(pipeline, options.steps)
    table, added = Amplification(sampling.known), np.array(options.guidance - 1)
    print("call  level   median  nine tenths  largest  guard's  largest / guard's")
    for call in range(FIRST, sampling.known.calls):
        found, guards = sampling.amplification(call), float(table.at_most(call, added))
        median, most, largest = torch.quantile(found, torch.tensor([0.5, 0.9, 1.0])).tolist()
        level = sampling.known.level[call]
        figures = f"{median:7.4f}  {most:11.4f}  {largest:7.4f}  {guards:7.4f}  {largest / guards:.1f}"
        print(f"{call:4}  {level:5.3f}  {figures}")
    return 0


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m tools.quality.amplification", description=__doc__.split("\n")[0])
    made.add_argument("--denoiser", choices=trained_denoisers(), required=True, help="of tools/trained")
    made.add_argument("--sampler", choices=list(SCHEDULERS), required=True, help="that makes the steps")
    made.add_argument("--guidance", type=float, required=True, metavar="SCALE", help="more than 1")
    made.add_argument("--steps", type=int, default=20, metavar="N", help="of a generation (default: 20)")
    made.add_argument("--samples", type=int, default=16, metavar="N", help="pictures (default: 16)")
    return made


if __name__ == "__main__":
    raise SystemExit(main())
