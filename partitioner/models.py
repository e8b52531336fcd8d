"""model_spec: a name, folder or hub id -> ModelSpec, how to build a denoiser, its example inputs and their roles.

The only file that knows architectures. To add one, write a function like those at the end of this file, here or in
your own code: it gets a Request and returns the arguments of one denoiser call.

    @register_model("tiny-dit", build=TinyDiT)
    def _tiny_dit(request: Request) -> Inputs:
        return {
            "x": latent(request.rows, 4, 32, 32),
            "t": timestep(request.rows),
            "context": prompt(request.rows, 16, 256),
        }

Torch and diffusers are imported only when something is built.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from partitioner.errors import UsageError
from partitioner.ir import Role
from partitioner.model_source import BUILT_IN, ModelSource, diffusers_class, find_source

if TYPE_CHECKING:
    import torch
    from torch import nn

    from partitioner.ir import TracedGraph

DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True, slots=True)
class ExampleTensor:
    """One tensor argument: its role, its shape and its dtype (None: the denoiser's)."""

    role: Role
    shape: tuple[int, ...]
    dtype: str | None = None


Inputs = Mapping[str, Any]  # argument -> ExampleTensor, literal (bool, int, float, str), or a nested Inputs


def latent(*shape: int) -> ExampleTensor:
    """The noisy sample."""
    return ExampleTensor(Role.LATENT, shape)


def timestep(*shape: int, dtype: str | None = "float32") -> ExampleTensor:
    """The timestep: no shape for a scalar. float32 also stands for the integers that some schedulers pass."""
    return ExampleTensor(Role.TIMESTEP, shape, dtype)


def prompt(*shape: int, dtype: str | None = None) -> ExampleTensor:
    """Conditioning that stays the same for a whole trajectory."""
    return ExampleTensor(Role.PROMPT, shape, dtype)


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be traced. height and width in pixels, frames of the video; None: as the pipeline does by default.

    batch: images or videos per call. rows: batch, twice that where guidance is batched with it.
    config, pipeline, vae: the configurations of the denoiser (with its class's defaults), of its pipeline
    (model_index.json) and of the pipeline's VAE; the last two are empty where they are not known.
    """

    height: int | None
    width: int | None
    frames: int | None
    batch: int
    rows: int
    config: Mapping[str, Any] = field(default_factory=dict)
    pipeline: Mapping[str, Any] = field(default_factory=dict)
    vae: Mapping[str, Any] = field(default_factory=dict)

    @property
    def vae_factor(self) -> int:
        """Pixels per latent pixel, in each direction."""
        if "scale_factor_spatial" in self.vae:
            return int(self.vae["scale_factor_spatial"])
        return 2 ** (len(self.vae["block_out_channels"]) - 1) if "block_out_channels" in self.vae else 8

    def pixels(self, default: tuple[int, int], multiple: int) -> tuple[int, int]:
        """(height, width) in pixels; UsageError unless both are multiples of ``multiple``."""
        height = default[0] if self.height is None else self.height
        width = default[1] if self.width is None else self.width
        for option, value in (("--height", height), ("--width", width)):
            if value % multiple:
                below, above = value - value % multiple, value - value % multiple + multiple
                near = f"{below} or {above}" if below else str(above)
                raise UsageError(
                    f"{option} {value} is not a multiple of {multiple}, which this model needs: use {near}"
                )
        return height, width

    def latent_pixels(self, default: tuple[int, int] | None = None, patch: int = 1) -> tuple[int, int]:
        """(height, width) of the latent: by default config's sample_size; patch: what both must be multiples of."""
        factor = self.vae_factor
        if default is None:
            size = self.config["sample_size"]
            side = (size, size) if isinstance(size, int) else size
            default = (side[0] * factor, side[1] * factor)
        height, width = self.pixels(default, factor * patch)
        return height // factor, width // factor


@dataclass(frozen=True)
class ModelSpec:
    """How to build a denoiser, its example inputs and their roles; a value that builds nothing until asked.

    name: what plans call the model. revision: the commit of a hub id, else None. dtype: "float16".
    halves: 2 where a call holds both halves of the guidance batch, else 1. batch: images or videos per call.
    inputs: the arguments of a call; branch_inputs: those of one guidance half (the same where halves is 1).
    make: makes the denoiser with the default dtype. scheduler: the class of the pipeline's sampler, where known.
    """

    name: str
    class_name: str
    inputs: Inputs
    branch_inputs: Inputs
    halves: int
    batch: int
    dtype: str
    make: Callable[[], nn.Module]
    revision: str | None = None
    scheduler: str | None = None

    def load(self) -> None:
        """Import what building and tracing need, which takes seconds; ``trace_model`` does it otherwise."""
        importlib.import_module("partitioner.trace")
        if self.class_name in _ARCHITECTURES and _ARCHITECTURES[self.class_name].build is None:
            diffusers_class(self.class_name)

    def build(self) -> nn.Module:
        """The denoiser in eval mode, with random weights; inside ``partitioner.trace.fake_mode()``, without any."""
        import torch

        before = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, self.dtype))
        try:
            return self.make().eval()
        finally:
            torch.set_default_dtype(before)

    @property
    def roles(self) -> dict[str, Role]:
        """Role of each tensor argument by its path, such as "added_cond_kwargs.text_embeds"."""
        return dict(_roles("", self.inputs))

    def example_inputs(self, *, branch: bool = False) -> dict[str, Any]:
        """Arguments of one call, tensors filled with zeros; branch: of one half of the guidance batch.

        Raises UsageError: branch where guidance is not batched.
        """
        if branch and self.halves == 1:
            raise UsageError(f"{self.name} has one branch: its calls hold no guidance batch to split; use --branches 1")
        return _zeros(self.branch_inputs if branch else self.inputs, self.dtype)


def _roles(path: str, inputs: Inputs) -> Iterator[tuple[str, Role]]:
    for name, value in inputs.items():
        if isinstance(value, ExampleTensor):
            yield path + name, value.role
        elif isinstance(value, Mapping):
            yield from _roles(f"{path}{name}.", value)


def _zeros(inputs: Inputs, dtype: str) -> dict[str, Any]:
    import torch

    made: dict[str, Any] = {}
    for name, value in inputs.items():
        if isinstance(value, ExampleTensor):
            made[name] = torch.zeros(value.shape, dtype=getattr(torch, value.dtype or dtype))
        else:
            made[name] = _zeros(value, dtype) if isinstance(value, Mapping) else value
    return made


def trace_model(spec: ModelSpec, *, branch: bool = False) -> TracedGraph:
    """Build the denoiser without weights and trace it; branch: with the inputs of one half of the guidance batch.

    Raises TraceError where it cannot be traced, UsageError as example_inputs does.
    """
    from partitioner.trace import fake_mode, trace

    with fake_mode():
        return trace(spec.build(), spec.example_inputs(branch=branch), spec.roles, model=spec.name)


@dataclass(frozen=True, slots=True)
class _Architecture:
    describe: Callable[[Request], Inputs]
    build: Callable[[], nn.Module] | None
    batches_guidance: bool
    video: bool
    dtype: str


_ARCHITECTURES: dict[str, _Architecture] = {}


def register_model(
    name: str,
    *,
    build: Callable[[], nn.Module] | None = None,
    batches_guidance: bool = True,
    video: bool = False,
    dtype: str = "float16",
) -> Callable[[Callable[[Request], Inputs]], Callable[[Request], Inputs]]:
    """Decorate the function that gives the arguments of a denoiser call, and so add an architecture.

    name: a name of your own together with ``build``, which makes the denoiser; or the name of a diffusers class
    without it, and then folders, hub ids and configurations of that class are understood.
    batches_guidance: whether the pipeline calls it once per step with both guidance halves in one batch.
    video: whether it has frames. dtype: what it is traced in unless asked otherwise.
    """

    def register(describe: Callable[[Request], Inputs]) -> Callable[[Request], Inputs]:
        if name in BUILT_IN or (name in _ARCHITECTURES and _ARCHITECTURES[name].describe is not describe):
            raise UsageError(f"a model named {name!r} is registered already; choose another name")
        _ARCHITECTURES[name] = _Architecture(describe, build, batches_guidance, video, dtype)
        return describe

    return register


def model_names() -> tuple[str, ...]:
    """The names that model_spec knows: built-in ones, then registered ones that build themselves."""
    return (*BUILT_IN, *(name for name, known in _ARCHITECTURES.items() if known.build is not None))


def model_spec(
    model: str,
    *,
    height: int | None = None,
    width: int | None = None,
    frames: int | None = None,
    batch: int = 1,
    guidance: bool = True,
    dtype: str | torch.dtype | None = None,
) -> ModelSpec:
    """The spec of a denoiser at given sizes; no weight is read.

    model: a built-in or registered name, the folder of a diffusers pipeline or model, or a hub id.
    height, width: of the images, in pixels; frames: of the video; None: the pipeline's defaults.
    batch: images or videos per prompt. guidance: whether classifier-free guidance is used.
    Raises UsageError: an unknown model or class, or a size that it cannot have.
    """
    source, architecture = _find(model)
    return _spec(source, architecture, _Sizes(height, width, frames, batch, guidance), dtype)


def live_spec(
    denoiser: Any,
    pipeline: Any,
    *,
    height: int | None = None,
    width: int | None = None,
    frames: int | None = None,
    batch: int = 1,
    guidance: bool = True,
) -> ModelSpec:
    """The spec of a denoiser in memory that belongs to a diffusers pipeline; sizes as for model_spec.

    Raises UsageError: a class whose arguments are not known, or a size that it cannot have.
    """
    class_name = type(denoiser).__name__
    vae = getattr(pipeline, "vae", None)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(str(getattr(pipeline, "name_or_path", ""))).name).strip("-._")
    source = ModelSource(
        name=name or class_name,
        class_name=class_name,
        config=dict(denoiser.config),
        pipeline={"_class_name": type(pipeline).__name__, **dict(pipeline.config)},
        vae=dict(vae.config) if vae is not None else {},
    )
    architecture = _known(source, class_name)
    return _spec(source, architecture, _Sizes(height, width, frames, batch, guidance), denoiser.dtype)


@dataclass(frozen=True, slots=True)
class _Sizes:
    height: int | None
    width: int | None
    frames: int | None
    batch: int
    guidance: bool

    def check(self, model: str, video: bool) -> None:
        for option in ("height", "width", "frames", "batch"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise UsageError(f"--{option} is {value}; expected 1 or more")
        if self.frames is not None and not video:
            raise UsageError(f"{model} makes images, which have no frames; leave --frames out")


def _spec(
    source: ModelSource, architecture: _Architecture, sizes: _Sizes, dtype: str | torch.dtype | None
) -> ModelSpec:
    sizes.check(source.name, architecture.video)
    config = dict(source.config)
    batched = sizes.guidance and architecture.batches_guidance and config.get("time_cond_proj_dim") is None
    halves = 2 if batched else 1  # a guidance-distilled UNet (time_cond_proj_dim) takes the guidance scale as an input

    def describe(rows: int) -> Inputs:
        request = Request(
            sizes.height, sizes.width, sizes.frames, sizes.batch, rows, config, source.pipeline, source.vae
        )
        inputs = architecture.describe(request)
        return inputs if architecture.build else {**inputs, "return_dict": False}

    return ModelSpec(
        name=source.name,
        class_name=source.class_name,
        inputs=describe(sizes.batch * halves),
        branch_inputs=describe(sizes.batch),
        halves=halves,
        batch=sizes.batch,
        dtype=_dtype_name(architecture.dtype if dtype is None else dtype),
        make=architecture.build or partial(_build, source.class_name, config),
        revision=source.revision,
        scheduler=_scheduler_of(source.pipeline),
    )


def _scheduler_of(pipeline: Mapping[str, Any]) -> str | None:
    """The scheduler's class in a model_index.json: ["diffusers", "DDIMScheduler"]."""
    entry = pipeline.get("scheduler")
    return str(entry[1]) if isinstance(entry, list | tuple) and len(entry) == 2 and entry[1] else None


def _dtype_name(dtype: str | torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise UsageError(f"--dtype {name} is not one of {', '.join(DTYPES)}")
    return name


def _find(model: str) -> tuple[ModelSource, _Architecture]:
    known = _ARCHITECTURES.get(model)
    if known is not None and known.build is not None:
        return ModelSource(model, getattr(known.build, "__name__", model)), known
    source = find_source(model)
    if source is None:
        close = difflib.get_close_matches(model, model_names(), n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UsageError(
            f"no model named {model!r}{hint}; expected one of {', '.join(model_names())}, the folder of a diffusers "
            "pipeline or model, or a hub id (owner/name)"
        )
    return source, _known(source, model)


def _known(source: ModelSource, model: str) -> _Architecture:
    if source.class_name not in _ARCHITECTURES:
        classes = ", ".join(name for name, known in _ARCHITECTURES.items() if known.build is None)
        raise UsageError(
            f"{model} is a {source.class_name}, whose arguments are not known; known are {classes}. Describe its call "
            f'with @register_model("{source.class_name}") from partitioner.models, or use '
            "partitioner.compile(module, example_inputs, roles, devices=...)"
        )
    return _ARCHITECTURES[source.class_name]


def _build(class_name: str, config: Mapping[str, Any]) -> nn.Module:
    """The denoiser with the dtypes that from_pretrained(torch_dtype=the default dtype) gives it."""
    import torch

    cls = diffusers_class(class_name)
    module: nn.Module = cls.from_config(dict(config))
    kept = cls._keep_in_fp32_modules or ()
    for name, tensor in module.state_dict(keep_vars=True).items():
        dtype = torch.float32 if any(part in kept for part in name.split(".")) else torch.get_default_dtype()
        if tensor.is_floating_point() and tensor.dtype != dtype:
            cast = tensor.detach().to(dtype)
            owner, _, attribute = name.rpartition(".")
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            setattr(module.get_submodule(owner), attribute, torch.nn.Parameter(cast, False) if is_parameter else cast)
    return module


# The arguments of one call, as diffusers' pipelines give them; arguments that are None there are left out.


@register_model("UNet2DConditionModel")
def _unet_2d_condition(request: Request) -> Inputs:
    """Stable Diffusion 1, 2, inpainting and upscaling; SDXL base and refiner; their LCM distillations."""
    config, rows = request.config, request.rows
    inputs: dict[str, Any] = {
        "sample": latent(rows, config["in_channels"], *request.latent_pixels()),
        "timestep": timestep(),
        "encoder_hidden_states": prompt(rows, 77, _width_of(config["cross_attention_dim"])),
    }
    if config["num_class_embeds"] is not None:
        inputs["class_labels"] = prompt(rows, dtype="int64")
    if config["time_cond_proj_dim"] is not None:
        inputs["timestep_cond"] = prompt(rows, config["time_cond_proj_dim"])
    if config["addition_embed_type"] == "text_time":
        ids = 5 if request.pipeline.get("requires_aesthetics_score") else 6
        pooled = config["projection_class_embeddings_input_dim"] - ids * config["addition_time_embed_dim"]
        inputs["added_cond_kwargs"] = {"text_embeds": prompt(rows, pooled), "time_ids": prompt(rows, ids)}
    elif config["addition_embed_type"] not in (None, "text") or config["class_embed_type"] is not None:
        kind = config["addition_embed_type"] or config["class_embed_type"]
        raise UsageError(
            f"a UNet2DConditionModel with {kind!r} conditioning is not known; use "
            "partitioner.compile(module, example_inputs, roles, devices=...)"
        )
    return inputs


def _width_of(cross_attention_dim: int | list[int]) -> int:
    return cross_attention_dim if isinstance(cross_attention_dim, int) else cross_attention_dim[0]


@register_model("UNet2DModel", batches_guidance=False)
def _unet_2d(request: Request) -> Inputs:
    """Denoisers of pixels: DDPM, DDIM, consistency models."""
    config, rows = request.config, request.rows
    size = config["sample_size"]
    height, width = request.pixels((size, size) if isinstance(size, int) else tuple(size), 1)
    inputs: dict[str, Any] = {"sample": latent(rows, config["in_channels"], height, width), "timestep": timestep()}
    if config["num_class_embeds"] is not None:
        inputs["class_labels"] = prompt(rows, dtype="int64")
    return inputs


@register_model("UNetSpatioTemporalConditionModel", video=True)
def _svd(request: Request) -> Inputs:
    """Stable Video Diffusion: the image's latents are channels of the sample, its CLIP embedding is the prompt."""
    config, rows = request.config, request.rows
    # Its upsampling only doubles, so every level needs an even size.
    height, width = request.latent_pixels((576, 1024), patch=2 ** (len(config["block_out_channels"]) - 1))
    ids = config["projection_class_embeddings_input_dim"] // config["addition_time_embed_dim"]
    return {
        "sample": latent(rows, request.frames or config["num_frames"], config["in_channels"], height, width),
        "timestep": timestep(),
        "encoder_hidden_states": prompt(rows, 1, _width_of(config["cross_attention_dim"])),
        "added_time_ids": prompt(rows, ids),
    }


@register_model("UNetMotionModel", video=True)
def _animatediff(request: Request) -> Inputs:
    """AnimateDiff: the pipeline repeats the prompt's rows once per frame."""
    config, rows = request.config, request.rows
    frames = request.frames or 16
    return {
        "sample": latent(rows, config["in_channels"], frames, *request.latent_pixels()),
        "timestep": timestep(),
        "encoder_hidden_states": prompt(rows * frames, 77, _width_of(config["cross_attention_dim"])),
    }


@register_model("SD3Transformer2DModel")
def _sd3(request: Request) -> Inputs:
    """Stable Diffusion 3: 77 CLIP tokens, then 256 T5 tokens."""
    config, rows = request.config, request.rows
    return {
        "hidden_states": latent(rows, config["in_channels"], *request.latent_pixels(patch=config["patch_size"])),
        "timestep": timestep(rows),
        "encoder_hidden_states": prompt(rows, 77 + 256, config["joint_attention_dim"]),
        "pooled_projections": prompt(rows, config["pooled_projection_dim"]),
    }


@register_model("FluxTransformer2DModel", batches_guidance=False, dtype="bfloat16")
def _flux(request: Request) -> Inputs:
    """FLUX.1: the pipeline packs 2 x 2 latents into a token and casts the timestep to the latents' dtype."""
    config, rows = request.config, request.rows
    side = 128 * request.vae_factor
    height, width = request.latent_pixels((side, side), patch=2)
    tokens = (height // 2) * (width // 2)
    inputs: dict[str, Any] = {
        "hidden_states": latent(rows, tokens, config["in_channels"]),
        "timestep": timestep(rows, dtype=None),
        "pooled_projections": prompt(rows, config["pooled_projection_dim"]),
        "encoder_hidden_states": prompt(rows, 512, config["joint_attention_dim"]),
        "txt_ids": prompt(512, 3),
        "img_ids": prompt(tokens, 3),
    }
    if config["guidance_embeds"]:
        inputs["guidance"] = prompt(rows, dtype="float32")
    return inputs


@register_model("PixArtTransformer2DModel")
def _pixart(request: Request) -> Inputs:
    """PixArt: Alpha has 120 tokens and, at 1024 pixels, the image's size as an input; Sigma 300 tokens and no size."""
    config, rows = request.config, request.rows
    sized = config["use_additional_conditions"]
    sized = config["sample_size"] == 128 if sized is None else sized
    alpha = sized or request.pipeline.get("_class_name") == "PixArtAlphaPipeline"
    tokens = 120 if alpha else 300
    inputs: dict[str, Any] = {
        "hidden_states": latent(rows, config["in_channels"], *request.latent_pixels(patch=config["patch_size"])),
        "encoder_hidden_states": prompt(rows, tokens, config["caption_channels"]),
        "encoder_attention_mask": prompt(rows, tokens, dtype="int64"),
        "timestep": timestep(rows),
    }
    if sized:
        inputs["added_cond_kwargs"] = {"resolution": prompt(rows, 2), "aspect_ratio": prompt(rows, 1)}
    return inputs


@register_model("WanTransformer3DModel", batches_guidance=False, video=True, dtype="bfloat16")
def _wan(request: Request) -> Inputs:
    """Wan: guidance is a second call; the first frame is a latent of its own, then every 4 frames make one."""
    config, rows = request.config, request.rows
    height, width = request.latent_pixels((480, 832), patch=config["patch_size"][1])
    frames = 81 if request.frames is None else request.frames
    factor = int(request.vae.get("scale_factor_temporal", 4))
    if frames % factor != 1 % factor:
        near = (frames - 1) // factor * factor + 1
        raise UsageError(f"--frames {frames}: this model makes {factor} x n + 1 frames; use {near} or {near + factor}")
    inputs: dict[str, Any] = {
        "hidden_states": latent(rows, config["in_channels"], (frames - 1) // factor + 1, height, width),
        "timestep": timestep(rows),
        "encoder_hidden_states": prompt(rows, 512, config["text_dim"]),
    }
    if config["image_dim"] is not None:
        inputs["encoder_hidden_states_image"] = prompt(rows, 257, config["image_dim"])
    return inputs
