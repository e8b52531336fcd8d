"""Built-in architectures: published sizes, and the arguments that diffusers' pipelines really pass."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch

from partitioner.errors import UsageError
from partitioner.graph.arguments import bind_arguments, flatten_arguments
from partitioner.graph.nodes import Role
from partitioner.models.built_in import BUILT_IN, BuiltIn, built_in
from partitioner.models.described_spec import _spec
from partitioner.models.find_spec import live_spec, model_spec
from partitioner.models.inputs import ExampleTensor
from partitioner.models.registry import ARCHITECTURES, NotDescribed
from partitioner.models.sizes import Sizes
from partitioner.models.source import find_source
from partitioner.models.spec import ModelSpec, trace_model
from tests.support.adapters import load_ip_adapter
from tests.support.small_models import LIKE, shapes, small_denoiser, tensors_of, write_pipeline
from tests.support.tiny_runs import RUNS, Run, run_animatediff_xl

# Millions of parameters as published, and tokens at the pipeline's default size (of UNets: pixels of the latent).
PUBLISHED: dict[str, tuple[int, int]] = {
    "animatediff": (1313, 16 * 64 * 64), "chroma": (8900, 4096), "cogvideox-5b": (5570, 13 * 30 * 45),
    "cosmos-predict2-2b": (1956, 48 * 85), "flux": (11901, 4096), "flux-fill": (11902, 4096), "flux2": (32223, 4096),
    "flux2-klein-4b": (3876, 4096), "flux2-klein-9b": (9079, 4096), "hunyuan-image": (17426, 64 * 64),
    "hunyuan-video": (12821, 33 * 45 * 80), "hunyuan-video-1.5": (8327, 31 * 30 * 53),
    "kandinsky5-lite": (2008, 31 * 32 * 48), "krea2": (12820, 4096), "ltx-video": (1923, 21 * 16 * 22),
    "ltx2": (18876, 16 * 16 * 24), "lumina2": (2610, 4096), "mochi": (10028, 4 * 30 * 53), "pixart": (611, 4096),
    "qwen-image": (20430, 4096), "sana": (1604, 1024), "sd-controlnet": (860, 4096), "sd15": (860, 4096),
    "sd21": (866, 9216), "sd3": (2028, 4096), "sd35-large": (8057, 4096), "sd35-medium": (2243, 4096),
    "sdxl": (2567, 128 * 128), "sdxl-inpaint": (2567, 128 * 128), "sdxl-refiner": (2260, 128 * 128),
    "stable-audio": (1057, 1024), "svd": (1525, 25 * 72 * 128), "wan": (14288, 21 * 30 * 52),
    "wan21-1.3b": (1419, 21 * 30 * 52), "wan22-i2v-a14b": (14289, 21 * 30 * 52),
    "wan22-t2v-a14b": (14288, 21 * 30 * 52), "wan22-ti2v-5b": (5000, 31 * 22 * 40),
    "x4up": (473, 128 * 128), "z-image": (6155, 4096),
}  # fmt: skip
# The arguments of one call with guidance, where they are not compared with a pipeline's at that size.
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "sdxl": {
        "sample": (2, 4, 128, 128), "timestep": (), "encoder_hidden_states": (2, 77, 2048),
        "added_cond_kwargs.text_embeds": (2, 1280), "added_cond_kwargs.time_ids": (2, 6),
    },
    "svd": {
        "sample": (2, 25, 8, 72, 128), "timestep": (), "encoder_hidden_states": (2, 1, 1024), "added_time_ids": (2, 3),
    },
    "animatediff": {"sample": (2, 4, 16, 64, 64), "timestep": (), "encoder_hidden_states": (32, 77, 768)},
    "sd35-large": {
        "hidden_states": (2, 16, 128, 128), "timestep": (2,), "encoder_hidden_states": (2, 333, 4096),
        "pooled_projections": (2, 2048),
    },
    "flux": {
        "hidden_states": (1, 4096, 64), "timestep": (1,), "pooled_projections": (1, 768),
        "encoder_hidden_states": (1, 512, 4096), "txt_ids": (512, 3), "img_ids": (4096, 3), "guidance": (1,),
    },
    "pixart": {
        "hidden_states": (2, 4, 128, 128), "encoder_hidden_states": (2, 300, 4096),
        "encoder_attention_mask": (2, 300), "timestep": (2,),
    },
    "wan22-ti2v-5b": {
        "hidden_states": (1, 48, 31, 44, 80), "timestep": (1, 27280), "encoder_hidden_states": (1, 512, 4096),
    },
    "x4up": {
        "sample": (2, 7, 128, 128), "timestep": (), "encoder_hidden_states": (2, 77, 1024), "class_labels": (2,),
    },
}  # fmt: skip


def test_every_built_in_name_is_tested() -> None:
    assert sorted(BUILT_IN) == sorted(PUBLISHED)
    small = {name: LIKE.get(name, name) for name in BUILT_IN}
    assert {name for name in BUILT_IN if name not in RUNS and small[name] not in RUNS} == {"x4up"}


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_has_its_published_size(name: str) -> None:
    known, spec = built_in(name), model_spec(name)
    millions, tokens = PUBLISHED[name]
    assert round(known.parameters / 1e6) == pytest.approx(millions, abs=1)
    assert tokens_of(spec, known) == known.tokens == tokens
    assert (spec.steps, spec.scheduler) == (known.steps, known.pipeline["scheduler"][1])
    assert hasattr(diffusers, known.pipeline["_class_name"])
    assert hasattr(diffusers, known.pipeline["scheduler"][1])
    assert spec.revision is None
    if name in SHAPES:
        assert {p: t.shape for p, t in flatten(spec.inputs)} == SHAPES[name]


def tokens_of(spec: ModelSpec, known: BuiltIn) -> int:
    """Tokens of one sample: the latent's positions over the volume of a patch."""
    first = next(tensor for _, tensor in flatten(spec.inputs) if tensor.role is Role.LATENT)
    channels = [known.config[key] for key in ("in_channels", "in_visual_dim") if key in known.config]
    if "kandinsky" in spec.name:
        channels = [2 * channels[0] + 1]
    sizes = list(first.shape if spec.name == "z-image" else first.shape[1:])
    sizes.remove(channels[0])
    patch = known.config.get("patch_size", known.config.get("all_patch_size", [1])[0])
    volume = math.prod(patch) if isinstance(patch, list) else patch ** (2 if len(sizes) > 1 else 0)
    return math.prod(sizes) // volume


def flatten(inputs: Any, path: str = "") -> list[tuple[str, ExampleTensor]]:
    if isinstance(inputs, ExampleTensor):
        return [(path, inputs)]
    items = inputs.items() if isinstance(inputs, dict) else enumerate(inputs) if isinstance(inputs, list) else ()
    return [found for key, value in items for found in flatten(value, f"{path}.{key}" if path else str(key))]


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILT_IN)
def test_so_many_parameters_has_its_module(name: str) -> None:
    known = built_in(name)
    with torch.device("meta"):
        module = getattr(diffusers, known.class_name).from_config(dict(known.config))
    assert sum(parameter.numel() for parameter in module.parameters()) == known.parameters


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


@pytest.mark.filterwarnings("ignore:`FluxPosEmbed`:FutureWarning", "ignore:In CPU autocast:UserWarning")  # their own
@pytest.mark.parametrize("name", RUNS)
def test_arguments_are_those_that_the_pipeline_passes(name: str, tmp_path: Path) -> None:
    run = RUNS[name]
    check_calls(small_denoiser(name, **run.config), run, tmp_path, built_in(name).pipeline["_class_name"])


def test_so_are_those_of_animatediff_with_sdxl(tmp_path: Path) -> None:
    """Whose motion modules are in the same class of denoiser as those with Stable Diffusion 1."""
    xl = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8,
          "projection_class_embeddings_input_dim": 6 * 8 + 16}  # fmt: skip
    run = Run(run_animatediff_xl, RUNS["animatediff"].sizes)
    check_calls(small_denoiser("animatediff", **xl), run, tmp_path, "AnimateDiffSDXLPipeline")


def test_an_ip_adapter_in_the_module_asks_for_its_images() -> None:
    unet = small_denoiser("sd15")
    load_ip_adapter(SimpleNamespace(unet=unet))
    spec = live_spec(unet, SimpleNamespace(config={}), height=64, width=64)
    assert spec.roles["added_cond_kwargs.image_embeds.0"] is Role.PROMPT
    with torch.no_grad():
        assert unet(**spec.example_inputs())[0].shape == (2, 4, 8, 8)


def check_calls(denoiser: Any, run: Run, tmp_path: Path, pipeline: str) -> None:
    """Described arguments are those that a pipeline passes, and guidance is done as described."""
    calls: list[dict[str, Any]] = []
    denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(bind_arguments(module, args, kwargs)), with_kwargs=True
    )
    run.run(denoiser)

    write_pipeline(tmp_path, pipeline, denoiser, "transformer", **run.index)
    spec = model_spec(str(tmp_path), **run.sizes, dtype="float32")
    described, passed = spec.example_inputs(), calls[0]
    expected, found = tensors_of(described), tensors_of(passed)
    assert {path: tuple(t.shape) for path, t in found.items()} == {p: tuple(t.shape) for p, t in expected.items()}
    for path, tensor in expected.items():
        if spec.roles[path] is Role.TIMESTEP:  # schedulers give integers or floats; float32 stands for both
            assert found[path].dtype in (torch.int64, torch.float32)
        else:
            assert found[path].dtype is tensor.dtype, path
    literals = flatten_arguments(described).literals
    assert {path: value for path, value in flatten_arguments(passed).literals.items() if path in literals} | {
        "return_dict": False
    } == literals
    assert (spec.guidance_style == "two-calls") == (len(calls) // run.steps == 2)


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
    assert model_spec(str(tmp_path / "lcm")).step.rows == 1
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


def test_a_pipeline_that_calls_it_otherwise_is_not_described(tmp_path: Path) -> None:
    """So that its call is recorded."""
    small_denoiser("ltx-video").save_config(tmp_path)
    source = find_source(str(tmp_path))
    assert source is not None
    other = replace(source, pipeline={"_class_name": "LTXImageToVideoPipeline"})
    with pytest.raises(NotDescribed, match="how a LTXImageToVideoPipeline calls its LTXVideo"):
        _spec(other, ARCHITECTURES[other.class_name], Sizes(64, 64, 9, 1, True), "float32", None)


def test_every_pipeline_that_is_named_is_there() -> None:
    named = {name for known in ARCHITECTURES.values() for name in known.pipelines}
    assert {name for name in named if not hasattr(diffusers, name)} == set()


def test_conditioning_that_is_not_known_is_refused(tmp_path: Path) -> None:
    small_denoiser("sd15").save_config(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "addition_embed_type": "image"}))
    with pytest.raises(UsageError, match="'image' conditioning is not known"):
        model_spec(str(tmp_path))
