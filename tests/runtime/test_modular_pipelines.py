"""parallelize in modular pipelines: a guider makes a call for each condition, some with hooks on the denoiser."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from partitioner.planning.options import PlanOptions
from runtime import parallelize
from runtime.errors import InputError
from runtime.live_plans import plan_for
from tests.support import pipelines

pytestmark = pytest.mark.slow
SIZES = {"height": 32, "width": 32}
BLOCKS = "mid_block.attentions.0.transformer_blocks"


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Stable Diffusion XL's, of its published blocks."""
    import diffusers

    parts = pipelines.load(pipelines.saved("stable_diffusion_xl", tmp_path_factory.mktemp("sdxl"))).components
    made = diffusers.StableDiffusionXLModularPipeline(diffusers.StableDiffusionXLAutoBlocks())
    made.update_components(**{name: part for name, part in parts.items() if part is not None})
    return made


def generate(pipe: Any, steps: int) -> torch.Tensor:
    latents: torch.Tensor = pipe(
        prompt="a cat", negative_prompt="dog", num_inference_steps=steps, generator=torch.Generator().manual_seed(1),
        output="latents", output_type="latent", **SIZES,
    )  # fmt: skip
    return latents


def skipping() -> Any:
    from diffusers import LayerSkipConfig, SkipLayerGuidance

    layers = LayerSkipConfig([0], fqn=BLOCKS)
    return SkipLayerGuidance(5.0, skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0, skip_layer_config=layers)


def dropping() -> Any:
    from diffusers import AutoGuidance, LayerSkipConfig

    return AutoGuidance(5.0, auto_guidance_config=LayerSkipConfig([0], fqn=BLOCKS, dropout=0.5))


def test_a_plan_made_now_has_each_of_the_guiders_calls_on_a_device_of_its_own(pipe: Any) -> None:
    expected = generate(pipe, 5)
    with parallelize(pipe, devices=2, sizes=SIZES, transport="emulation") as engine:
        assert (engine.plan.branches, engine.plan.streams, engine.plan.components) == (2, 2, 1)
        assert torch.equal(generate(pipe, 5), expected)
        assert (engine.stats.foreseen_calls, engine.stats.wasted_calls) == (4, 0)


def test_calls_with_hooks_are_a_trajectory_of_their_own_and_dropout_is_refused(pipe: Any) -> None:
    plan = plan_for(pipe, 2, SIZES, PlanOptions(branches=1, force=True))
    pipe.update_components(guider=skipping())
    expected = generate(pipe, 4)
    with parallelize(pipe, plan, transport="emulation", mode="async", warmup=4) as engine:
        assert torch.equal(generate(pipe, 4), expected), "all of it is the warm-up"
        before = engine.stats
        generate(pipe, 9)
        calls, lagged = engine.stats.steps - before.steps, engine.stats.async_steps
        assert (calls, lagged) == (9 + 9 + 8, 5 + 5 + 4), "layers are skipped from the second step on"
        pipe.update_components(guider=dropping())
        with pytest.raises(InputError, match="draws random numbers"):
            generate(pipe, 3)
