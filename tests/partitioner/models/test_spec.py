"""Known models: their published size, the arguments that pipelines really pass, folders, sizes and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from partitioner.errors import UsageError
from partitioner.graph.arguments import bind_arguments, flatten_arguments
from partitioner.graph.export import fake_mode, trace
from partitioner.graph.ir import Role
from partitioner.models.inputs import Inputs, latent, prompt, timestep
from partitioner.models.registry import Request, model_names, register_model
from partitioner.models.source import find_source
from partitioner.models.spec import model_spec, trace_model

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

# What makes a published configuration small, its topology aside.
SMALL: dict[str, dict[str, Any]] = {
    "sd15": {
        "sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 16,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "attention_head_dim": 4,
    },
    "sdxl": {
        "sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 16,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": (2, 4),
        "transformer_layers_per_block": 1, "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 16,
    },
    "svd": {
        "sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 16,
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), "num_attention_heads": (2, 4),
        "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 24, "num_frames": 3,
    },
    "animatediff": {
        "sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 16,
        "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
        "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"), "num_attention_heads": 2,
        "motion_num_attention_heads": 2,
    },
    "sd3": {
        "sample_size": 16, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8,
        "joint_attention_dim": 16, "caption_projection_dim": 16, "pooled_projection_dim": 16, "pos_embed_max_size": 16,
    },
    "flux": {
        "num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 16,
        "joint_attention_dim": 16, "pooled_projection_dim": 16, "axes_dims_rope": (4, 4, 8),
    },
    "pixart": {
        "sample_size": 16, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8,
        "cross_attention_dim": 16, "caption_channels": 16,
    },
    "wan": {
        "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "text_dim": 16,
        "freq_dim": 16,
    },
}  # fmt: skip


def small_denoiser(name: str, **changes: Any) -> Any:
    source = find_source(name)
    assert source is not None
    torch.manual_seed(0)
    config = {**source.config, **SMALL[name], **changes}
    return getattr(diffusers, source.class_name).from_config(config).eval()


def tensors_of(arguments: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return flatten_arguments(arguments)[0]


def shapes_of(arguments: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {path: tuple(tensor.shape) for path, tensor in tensors_of(arguments).items()}


def test_every_built_in_name_is_tested() -> None:
    built_in = [name for name in model_names() if find_source(name) is not None]
    assert sorted(built_in) == sorted(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
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


@pytest.mark.parametrize(("name", "latent_nodes"), [("sd15", 887), ("pixart", 965)])
def test_full_size_traces_without_weights(name: str, latent_nodes: int) -> None:
    graph = trace_model(model_spec(name))
    assert graph.model == name
    assert len(graph.latent_nodes) == pytest.approx(latent_nodes, rel=0.1)  # export differs a little between versions
    assert {node.role for node in graph.nodes} == set(Role)
    buffers = {"pos_embed.pos_embed"}
    read = sum(p.meta.numel for p in graph.parameters if p.path not in buffers)
    assert round(read / 1e6) == pytest.approx(PUBLISHED[name][0], abs=1)  # every parameter is read by some node


@pytest.mark.parametrize("name", SMALL)
def test_a_folder_without_weights_traces_as_the_loaded_model_does(name: str, tmp_path: Path) -> None:
    denoiser = small_denoiser(name)
    denoiser.save_pretrained(tmp_path)
    loaded = type(denoiser).from_pretrained(tmp_path, torch_dtype=torch.float16).eval()
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()

    spec = model_spec(str(tmp_path), height=64, width=64, dtype=torch.float16)
    assert spec.class_name == type(denoiser).__name__
    graph = trace_model(spec)
    assert graph.fingerprint == trace(loaded, spec.example_inputs(), spec.roles).fingerprint


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
    run, frames = RUNS[name]
    denoiser = small_denoiser(name)
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


def write_pipeline(folder: Path, class_name: str, denoiser: Any, part: str = "unet", **index: Any) -> None:
    folder.mkdir(exist_ok=True)
    library = ["diffusers", type(denoiser).__name__]
    (folder / "model_index.json").write_text(json.dumps({"_class_name": class_name, part: library, **index}))
    denoiser.save_config(folder / part)


def shapes(model: str | Path, **sizes: Any) -> dict[str, tuple[int, ...]]:
    return shapes_of(model_spec(str(model), **sizes).example_inputs())


def test_sizes_are_pixels_and_the_batch_counts_images_per_half() -> None:
    assert shapes("sd15", height=256, width=384, batch=3)["sample"] == (6, 4, 32, 48)
    assert shapes("sd15", batch=3, guidance=False)["encoder_hidden_states"] == (3, 77, 768)
    assert shapes("svd", height=320, width=576, frames=14)["sample"] == (2, 14, 8, 40, 72)
    assert shapes("animatediff", frames=8, batch=2)["encoder_hidden_states"] == (2 * 2 * 8, 77, 768)
    assert shapes("flux", height=512, width=768)["img_ids"] == (32 * 48, 3)
    assert shapes("wan", frames=17)["hidden_states"] == (1, 16, 5, 60, 104)


def test_one_branch_is_half_of_the_rows() -> None:
    spec = model_spec("animatediff", batch=2)
    whole, half = spec.example_inputs(), spec.example_inputs(branch=True)
    assert whole["sample"].shape[0] == 2 * half["sample"].shape[0] == 4
    assert whole["encoder_hidden_states"].shape[0] == 2 * half["encoder_hidden_states"].shape[0]
    assert half["timestep"].shape == ()


@pytest.mark.parametrize(("model", "sizes"), [("flux", {}), ("wan", {}), ("sd15", {"guidance": False})])
def test_a_branch_is_refused_where_guidance_is_not_batched(model: str, sizes: dict[str, Any]) -> None:
    spec = model_spec(model, **sizes)
    assert spec.halves == 1
    with pytest.raises(UsageError, match=r"one branch.*--branches 1"):
        spec.example_inputs(branch=True)


@pytest.mark.parametrize(
    ("model", "sizes", "message"),
    [
        ("sd15", {"height": 500}, "--height 500 is not a multiple of 8.*use 496 or 504"),
        ("sd3", {"width": 1000}, "use 992 or 1008"),
        ("svd", {"height": 1080}, "--height 1080 is not a multiple of 64.*use 1024 or 1088"),
        ("sdxl", {"frames": 8}, "sdxl makes images.*leave --frames out"),
        ("wan", {"frames": 80}, "use 77 or 81"),
        ("sd15", {"batch": 0}, "--batch is 0; expected 1 or more"),
        ("sd15", {"dtype": "int8"}, "--dtype int8 is not one of float16, bfloat16, float32"),
    ],
)
def test_sizes_that_a_model_cannot_have_are_refused(model: str, sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        model_spec(model, **sizes)


def test_a_pipeline_folder_gives_the_denoiser_and_the_vae_factor(tmp_path: Path) -> None:
    folder = tmp_path / "tiny-pipeline"
    write_pipeline(folder, "StableDiffusionPipeline", small_denoiser("sd15"), vae=["diffusers", "AutoencoderKL"])
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text(json.dumps({"block_out_channels": [8, 8]}))
    spec = model_spec(str(folder))
    assert (spec.name, spec.class_name) == ("tiny-pipeline", "UNet2DConditionModel")
    assert shapes(folder)["sample"] == (2, 4, 16, 16)
    assert shapes(folder, height=20, width=40)["sample"] == (2, 4, 10, 20)


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


def test_folders_that_hold_no_known_denoiser_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"neither a model_index\.json.*nor a config\.json"):
        model_spec(str(tmp_path))
    config = tmp_path / "config.json"
    for text, message in (
        ("{x}", "is not JSON"),
        ("[]", "holds a list; expected an object"),
        ("{}", "names no _class_name"),
        ('{"_class_name": "NoSuchModel"}', r"diffusers [\d.]+ has no model class NoSuchModel"),
        ('{"_class_name": "DDIMScheduler"}', "has no model class DDIMScheduler"),
        ('{"_class_name": "AutoencoderKL"}', r'arguments are not known.*@register_model\("AutoencoderKL"\)'),
    ):
        config.write_text(text)
        with pytest.raises(UsageError, match=message):
            model_spec(str(tmp_path))
    config.unlink()
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "ShapEPipeline", "prior": ["diffusers", "PriorTransformer"]}'
    )
    with pytest.raises(UsageError, match="is a ShapEPipeline without a unet/config"):
        model_spec(str(tmp_path))


def test_conditioning_that_is_not_known_is_refused(tmp_path: Path) -> None:
    small_denoiser("sd15").save_config(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "addition_embed_type": "image"}))
    with pytest.raises(UsageError, match="'image' conditioning is not known"):
        model_spec(str(tmp_path))


def test_unknown_names_are_refused_with_what_is_known() -> None:
    with pytest.raises(UsageError, match=r"no model named 'sdlx' \(did you mean sdxl\?\); expected one of animatediff"):
        model_spec("sdlx")


def test_a_hub_id_without_a_network_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match=r"no folder nobody/nothing.*Check the id and the network"):
        model_spec("nobody/nothing")


def test_a_hub_id_in_the_local_cache_gives_its_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--owner--tiny" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    write_pipeline(snapshot, "StableDiffusionPipeline", small_denoiser("sd15"))
    references = tmp_path / "models--owner--tiny" / "refs"
    references.mkdir()
    (references / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    spec = model_spec("owner/tiny")
    assert (spec.name, spec.revision) == ("owner/tiny", commit)


class TinyDenoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor, scale: float) -> torch.Tensor:
        return self.inside(x) * t + context.mean(1, keepdim=True) * scale


def test_one_decorated_function_adds_an_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("partitioner.models._ARCHITECTURES", {})

    @register_model("tiny-denoiser", build=TinyDenoiser, dtype="float32")
    def tiny(request: Request) -> Inputs:
        height, width = request.pixels((16, 16), 4)
        rows = request.rows
        return {"x": latent(rows, height, width // 2), "t": timestep(), "context": prompt(rows, 3, 8), "scale": 0.5}

    assert model_names()[-1] == "tiny-denoiser"
    spec = model_spec("tiny-denoiser")
    assert spec.roles == {"x": Role.LATENT, "t": Role.TIMESTEP, "context": Role.PROMPT}
    graph = trace_model(spec)
    assert [p.path for p in graph.parameters] == ["inside.weight", "inside.bias"]
    assert graph.class_name == "TinyDenoiser"
    assert dict(graph.literals) == {"scale": 0.5}
    with pytest.raises(UsageError, match="registered already"):
        register_model("tiny-denoiser")(lambda request: {})
    with pytest.raises(UsageError, match="registered already"):
        register_model("sdxl")(tiny)


def test_the_readme_s_example_adds_a_diffusers_class(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("partitioner.models._ARCHITECTURES", {})
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    (example,) = [block for block in readme.split("```python\n") if "@register_model" in block.split("```")[0]]
    exec(example.split("```")[0], {})
    denoiser = diffusers.AuraFlowTransformer2DModel(
        sample_size=16, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pos_embed_max_size=64,
    )  # fmt: skip
    denoiser.save_config(tmp_path)
    assert shapes(tmp_path)["hidden_states"] == (2, 4, 16, 16)
    assert trace_model(model_spec(str(tmp_path))).latent_nodes
