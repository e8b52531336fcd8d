"""Built-in architectures: published sizes, and the arguments that diffusers' pipelines really pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from partitioner.errors import UsageError
from partitioner.graph.arguments import bind_arguments
from partitioner.graph.export import fake_mode
from partitioner.graph.ir import Role
from partitioner.models.registry import model_names
from partitioner.models.source import find_source
from partitioner.models.spec import live_spec, model_spec, trace_model
from tests.support.adapters import load_ip_adapter
from tests.support.small_models import shapes, shapes_of, small_denoiser, tensors_of, write_pipeline

# Millions of parameters and the arguments of one call with guidance, as published and as the pipelines' defaults are.
PUBLISHED: dict[str, tuple[int, dict[str, tuple[int, ...]]]] = {
    "sd15": (860, {"sample": (2, 4, 64, 64), "timestep": (), "encoder_hidden_states": (2, 77, 768)}),
    "sd21": (866, {"sample": (2, 4, 96, 96), "timestep": (), "encoder_hidden_states": (2, 77, 1024)}),
    "sdxl": (2567, {
        "sample": (2, 4, 128, 128), "timestep": (), "encoder_hidden_states": (2, 77, 2048),
        "added_cond_kwargs.text_embeds": (2, 1280), "added_cond_kwargs.time_ids": (2, 6),
    }),
    "svd": (1525, {
        "sample": (2, 25, 8, 72, 128), "timestep": (), "encoder_hidden_states": (2, 1, 1024), "added_time_ids": (2, 3),
    }),
    "animatediff": (1313, {
        "sample": (2, 4, 16, 64, 64), "timestep": (), "encoder_hidden_states": (32, 77, 768),
    }),
    "sd3": (2028, {
        "hidden_states": (2, 16, 128, 128), "timestep": (2,), "encoder_hidden_states": (2, 333, 4096),
        "pooled_projections": (2, 2048),
    }),
    "flux": (11901, {
        "hidden_states": (1, 4096, 64), "timestep": (1,), "pooled_projections": (1, 768),
        "encoder_hidden_states": (1, 512, 4096), "txt_ids": (512, 3), "img_ids": (4096, 3), "guidance": (1,),
    }),
    "pixart": (611, {
        "hidden_states": (2, 4, 128, 128), "encoder_hidden_states": (2, 300, 4096),
        "encoder_attention_mask": (2, 300), "timestep": (2,),
    }),
    "wan": (14289, {
        "hidden_states": (1, 16, 21, 60, 104), "timestep": (1,), "encoder_hidden_states": (1, 512, 4096),
    }),
    "x4up": (473, {
        "sample": (2, 7, 128, 128), "timestep": (), "encoder_hidden_states": (2, 77, 1024), "class_labels": (2,),
    }),
}  # fmt: skip


def test_every_built_in_name_is_tested() -> None:
    built_in = [name for name in model_names() if find_source(name) is not None]
    assert sorted(built_in) == sorted(PUBLISHED)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in ("sdxl", "svd", "flux") else []) for name in PUBLISHED],
)
def test_built_in_has_its_published_size_and_arguments(name: str) -> None:
    millions, shapes = PUBLISHED[name]
    spec = model_spec(name)
    with fake_mode():
        parameters = list(spec.build().parameters())
        arguments = spec.example_inputs()
    assert round(sum(p.numel() for p in parameters) / 1e6) == pytest.approx(millions, abs=1)
    assert shapes_of(arguments) == shapes
    assert arguments["return_dict"] is False
    assert spec.halves == (1 if name in ("flux", "wan") else 2)
    assert spec.revision is None
    assert getattr(torch, spec.dtype) in {p.dtype for p in parameters}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "latent_nodes"), [("sd15", 887), ("pixart", 965)])
def test_full_size_traces_without_weights(name: str, latent_nodes: int) -> None:
    graph = trace_model(model_spec(name))
    assert graph.model == name
    assert len(graph.latent_nodes) == pytest.approx(latent_nodes, rel=0.1)  # export differs a little between versions
    assert {node.role for node in graph.nodes} == set(Role) - {Role.STEP}  # which only inputs have
    buffers = {"pos_embed.pos_embed"}
    read = sum(p.meta.numel for p in graph.parameters if p.path not in buffers)
    assert round(read / 1e6) == pytest.approx(PUBLISHED[name][0], abs=1)  # every parameter is read by some node


def tiny_vae() -> diffusers.AutoencoderKL:
    """Of the usual factor of 8."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip


def run_sd15(unet: Any) -> None:
    diffusers.StableDiffusionPipeline(
        tiny_vae(),
        None,
        None,
        unet,
        diffusers.EulerDiscreteScheduler(steps_offset=1),
        None,
        None,
        requires_safety_checker=False,
    )(prompt_embeds=torch.ones(1, 77, 16), negative_prompt_embeds=torch.zeros(1, 77, 16), **ONE_STEP)


def run_sdxl(unet: Any) -> None:
    diffusers.StableDiffusionXLPipeline(
        tiny_vae(), None, None, None, None, unet, diffusers.EulerDiscreteScheduler(), add_watermarker=False
    )(
        prompt_embeds=torch.ones(1, 77, 16), negative_prompt_embeds=torch.zeros(1, 77, 16),
        pooled_prompt_embeds=torch.ones(1, 16), negative_pooled_prompt_embeds=torch.zeros(1, 16), **ONE_STEP,
    )  # fmt: skip


class ImageEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def forward(self, image: torch.Tensor) -> Any:
        return type("Output", (), {"image_embeds": torch.ones(len(image), 16)})


class Features:
    def __call__(self, images: torch.Tensor, **_: Any) -> Any:
        return type("Output", (), {"pixel_values": images})


def run_svd(unet: Any) -> None:
    vae = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32,) * 4, down_block_types=("DownEncoderBlock2D",) * 4
    )
    diffusers.StableVideoDiffusionPipeline(vae, ImageEncoder(), unet, diffusers.EulerDiscreteScheduler(), Features())(
        torch.zeros(1, 3, 64, 64), **ONE_STEP
    )


def run_animatediff(unet: Any) -> None:
    diffusers.AnimateDiffPipeline(tiny_vae(), None, None, unet, None, diffusers.DDIMScheduler())(
        prompt_embeds=torch.ones(1, 77, 16), negative_prompt_embeds=torch.zeros(1, 77, 16), num_frames=3, **ONE_STEP
    )


def run_sd3(transformer: Any) -> None:
    diffusers.StableDiffusion3Pipeline(
        transformer, diffusers.FlowMatchEulerDiscreteScheduler(), tiny_vae(), *[None] * 6
    )(
        prompt_embeds=torch.ones(1, 333, 16), negative_prompt_embeds=torch.zeros(1, 333, 16),
        pooled_prompt_embeds=torch.ones(1, 16), negative_pooled_prompt_embeds=torch.zeros(1, 16), **ONE_STEP,
    )  # fmt: skip


def run_flux(transformer: Any) -> None:
    diffusers.FluxPipeline(
        diffusers.FlowMatchEulerDiscreteScheduler(), tiny_vae(), None, None, None, None, transformer
    )(prompt_embeds=torch.ones(1, 512, 16), pooled_prompt_embeds=torch.ones(1, 16), **ONE_STEP)


def run_pixart(transformer: Any) -> None:
    diffusers.PixArtSigmaPipeline(None, None, tiny_vae(), transformer, diffusers.DPMSolverMultistepScheduler())(
        negative_prompt=None, use_resolution_binning=False,
        prompt_embeds=torch.ones(1, 300, 16), prompt_attention_mask=torch.ones(1, 300, dtype=torch.int64),
        negative_prompt_embeds=torch.ones(1, 300, 16),
        negative_prompt_attention_mask=torch.ones(1, 300, dtype=torch.int64), **ONE_STEP,
    )  # fmt: skip


def run_wan(transformer: Any) -> None:
    vae = diffusers.AutoencoderKLWan(base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    diffusers.WanPipeline(None, None, vae, diffusers.UniPCMultistepScheduler(), transformer)(
        prompt_embeds=torch.ones(1, 512, 16), negative_prompt_embeds=torch.zeros(1, 512, 16), num_frames=5, **ONE_STEP
    )


ONE_STEP: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 1, "output_type": "latent"}


RUNS: dict[str, tuple[Callable[[Any], None], int | None]] = {
    "sd15": (run_sd15, None), "sdxl": (run_sdxl, None), "svd": (run_svd, 3), "animatediff": (run_animatediff, 3),
    "sd3": (run_sd3, None), "flux": (run_flux, None), "pixart": (run_pixart, None), "wan": (run_wan, 5),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_arguments_are_those_that_the_pipeline_passes(name: str, tmp_path: Path) -> None:
    check_arguments(small_denoiser(name), *RUNS[name], tmp_path)


def test_so_are_those_of_animatediff_with_sdxl(tmp_path: Path) -> None:
    """Whose motion modules are in the same class of denoiser as those with Stable Diffusion 1."""
    xl = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8,
          "projection_class_embeddings_input_dim": 6 * 8 + 16}  # fmt: skip

    def run(unet: Any) -> None:
        diffusers.AnimateDiffSDXLPipeline(
            tiny_vae(), None, None, None, None, unet, None, diffusers.EulerDiscreteScheduler()
        )(
            prompt_embeds=torch.ones(1, 77, 16), negative_prompt_embeds=torch.zeros(1, 77, 16), num_frames=3,
            pooled_prompt_embeds=torch.ones(1, 16), negative_pooled_prompt_embeds=torch.zeros(1, 16), **ONE_STEP,
        )  # fmt: skip

    check_arguments(small_denoiser("animatediff", **xl), run, 3, tmp_path)


def test_an_ip_adapter_in_the_module_asks_for_its_images() -> None:
    unet = small_denoiser("sd15")
    load_ip_adapter(SimpleNamespace(unet=unet))
    spec = live_spec(unet, SimpleNamespace(config={}), height=64, width=64)
    assert spec.roles["added_cond_kwargs.image_embeds.0"] is Role.PROMPT
    with torch.no_grad():
        assert unet(**spec.example_inputs())[0].shape == (2, 4, 8, 8)


def check_arguments(denoiser: Any, run: Callable[[Any], None], frames: int | None, tmp_path: Path) -> None:
    """Described arguments are those that a pipeline passes."""
    calls: list[dict[str, torch.Tensor]] = []
    denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(tensors_of(bind_arguments(module, args, kwargs))), with_kwargs=True
    )
    run(denoiser)

    denoiser.save_config(tmp_path)
    arguments = tensors_of(
        model_spec(str(tmp_path), height=64, width=64, frames=frames, dtype="float32").example_inputs()
    )
    passed = calls[0]
    assert {path: tuple(t.shape) for path, t in passed.items()} == {p: tuple(t.shape) for p, t in arguments.items()}
    for path, tensor in arguments.items():
        if path == "timestep":  # schedulers give integers or floats; float32 stands for both
            assert passed[path].dtype in (torch.int64, torch.float32)
        else:
            assert passed[path].dtype is tensor.dtype, path


def test_variants_of_known_classes_follow_their_configuration(tmp_path: Path) -> None:
    inpaint = small_denoiser("sd15", in_channels=9, num_class_embeds=10)
    write_pipeline(tmp_path / "inpaint", "StableDiffusionInpaintPipeline", inpaint)
    assert shapes(tmp_path / "inpaint")["sample"][1] == 9
    assert shapes(tmp_path / "inpaint")["class_labels"] == (2,)

    refiner = small_denoiser("sdxl", projection_class_embeddings_input_dim=5 * 8 + 24)
    write_pipeline(tmp_path / "refiner", "StableDiffusionXLImg2ImgPipeline", refiner, requires_aesthetics_score=True)
    assert shapes(tmp_path / "refiner")["added_cond_kwargs.time_ids"] == (2, 5)
    assert shapes(tmp_path / "refiner")["added_cond_kwargs.text_embeds"] == (2, 24)

    distilled = small_denoiser("sd15", time_cond_proj_dim=32)
    write_pipeline(tmp_path / "lcm", "LatentConsistencyModelPipeline", distilled)
    assert model_spec(str(tmp_path / "lcm")).halves == 1
    assert shapes(tmp_path / "lcm")["timestep_cond"] == (1, 32)

    alpha = small_denoiser("pixart", use_additional_conditions=True)
    write_pipeline(tmp_path / "alpha", "PixArtAlphaPipeline", alpha, part="transformer")
    assert shapes(tmp_path / "alpha")["encoder_hidden_states"] == (2, 120, 16)
    assert shapes(tmp_path / "alpha")["added_cond_kwargs.resolution"] == (2, 2)
    assert set(model_spec(str(tmp_path / "alpha")).roles.values()) == {Role.LATENT, Role.TIMESTEP, Role.PROMPT}

    pixels = diffusers.UNet2DModel(
        sample_size=24, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    write_pipeline(tmp_path / "ddpm", "DDPMPipeline", pixels)
    assert shapes(tmp_path / "ddpm", batch=4) == {"sample": (4, 3, 24, 24), "timestep": ()}
    assert trace_model(model_spec(str(tmp_path / "ddpm"))).latent_nodes

    to_video = small_denoiser("wan", image_dim=8, in_channels=36)
    write_pipeline(tmp_path / "i2v", "WanImageToVideoPipeline", to_video, part="transformer")
    assert shapes(tmp_path / "i2v")["encoder_hidden_states_image"] == (1, 257, 8)


def test_conditioning_that_is_not_known_is_refused(tmp_path: Path) -> None:
    small_denoiser("sd15").save_config(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "addition_embed_type": "image"}))
    with pytest.raises(UsageError, match="'image' conditioning is not known"):
        model_spec(str(tmp_path))
