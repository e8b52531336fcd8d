"""guessed_calls: the arguments to call a diffusers pipeline with, read from the signature of its ``__call__``.

A modular pipeline's blocks declare them instead.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

from partitioner.errors import UsageError
from partitioner.models.sizes import Sizes

TEXT = "a photograph of a red lighthouse on a rocky coast at dusk, with waves and a small boat in the distance"
_SIDE = 512  # of an image, in pixels, where the pipeline does not say
_FRAMES = 16
_COUNTS = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt", "batch_size")
_OF_STEPS = ("timesteps", "sigmas")  # lists that have nothing to do with the number of prompts
_GUIDANCE = (
    "guidance_scale", "max_guidance_scale", "min_guidance_scale", "true_cfg_scale", "guidance_scale_2",
    "audio_guidance_scale", "prior_guidance_scale", "decoder_guidance_scale",
)  # fmt: skip
# What is given besides what must be, until a call succeeds: pipelines often ask only in their code.
_OPTIONAL: tuple[tuple[str, ...], ...] = (
    (), ("image",), ("image", "mask_image"), ("control_image",), ("image", "control_image"),
    ("image", "mask_image", "control_image"), ("video",), ("video", "mask"), ("video", "conditioning_frames"),
    ("image", "video"), ("conditioning_frames",), ("image", "last_image"), ("class_labels",), ("image_reference",),
    ("control_video",), ("video", "control_video"),
    ("control_image", "control_mask"),
)  # fmt: skip


def guidance_arguments(pipe: Any) -> tuple[str, ...]:
    """The arguments of a pipeline's call that say how strong guidance is."""
    taken = _parameters(pipe)
    return tuple(name for name in _GUIDANCE if name in taken)


def guessed_calls(
    pipe: Any, denoiser: Any, sizes: Sizes, steps: int, given: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Arguments for a pipeline's call, the likeliest first.

    Args:
        pipe: The pipeline.
        denoiser: Its denoiser, whose configuration may tell the size of images.
        sizes: What the user asks for.
        steps: How many denoising steps to run.
        given: Arguments that are known; what they lack is guessed.

    Raises:
        UsageError: The pipeline's call takes no such size, or has no such argument as given.
    """
    taken = _parameters(pipe)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(type(pipe).__call__).parameters.values())
    unknown = [name for name in given if name not in taken]
    if unknown and not open_ended:
        raise UsageError(f"the call of a {type(pipe).__name__} takes no {unknown[0]}; it takes {', '.join(taken)}")
    texts = {name: text for name, text in _texts(taken, sizes, given).items() if f"{name}_embeds" not in given}
    always = {**_run_arguments(taken, steps), **_size_arguments(pipe, taken, sizes), **texts, **given}
    for name in taken:  # embeddings stand for their text, which a call refuses beside them
        if f"{name}_embeds" in given and taken[name].default is inspect.Parameter.empty:
            always.setdefault(name, None)
    makers = _Media(pipe, denoiser, taken, sizes)
    required = {
        name: value for name, parameter in taken.items()
        if parameter.default is parameter.empty and name not in always
        and (value := makers.make(name, parameter)) is not None
    }  # fmt: skip
    tried: list[dict[str, Any]] = []
    seen: list[tuple[str, ...]] = []
    for names in _OPTIONAL:
        more = tuple(name for name in names if name not in always and name not in required)
        if more not in seen and all(name in taken for name in names):
            seen.append(more)
            made = {name: makers.make(name, taken[name]) for name in more}
            tried.append({**always, **required, **{name: value for name, value in made.items() if value is not None}})
            yield tried[-1]
    if "output_type" in taken and "output_type" not in given:  # some know no "latent"
        for call in tried:
            yield {name: value for name, value in call.items() if name != "output_type"}


def images_of(call: Mapping[str, Any]) -> int:
    """How many images or videos a pipeline is called for: those per prompt, of every prompt.

    >>> images_of({"prompt": ["a lighthouse", "a boat"], "num_images_per_prompt": 3})
    6
    """
    counts = [count for name in _COUNTS if isinstance(count := call.get(name), int)]
    return math.prod(counts) * _prompts_of(call)


def of_one_image(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a pipeline's call, for one image of its first prompt.

    >>> of_one_image({"prompt": ["a lighthouse", "a boat"], "num_images_per_prompt": 3, "guidance_scale": 4.0})
    {'prompt': ['a lighthouse'], 'num_images_per_prompt': 1, 'guidance_scale': 4.0}
    """
    prompts = _prompts_of(given)

    def first(value: Any) -> Any:
        many = isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) > 0
        return value[:1] if many and len(value) == prompts > 1 else value

    one = {name: 1 if name in _COUNTS else first(value) for name, value in given.items()}
    return {**given, **{name: value for name, value in one.items() if name not in _OF_STEPS}}


def _prompts_of(call: Mapping[str, Any]) -> int:
    """How many prompts, or classes, a call has."""
    for name in ("prompt", "prompt_embeds", "class_labels"):
        value: Any = call.get(name)
        if isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) > 0:
            return max(1, len(value))
    return 1


def missing_arguments(pipe: Any, call: Mapping[str, Any]) -> list[str]:
    """What a pipeline's call needs by its signature and is not given."""
    return [name for name, p in _parameters(pipe).items() if p.default is p.empty and name not in call]


def _parameters(pipe: Any) -> dict[str, inspect.Parameter]:
    """What a pipeline's call takes, by its signature or, where it is made of blocks, as these declare it."""
    found = inspect.signature(type(pipe).__call__).parameters
    declared = getattr(getattr(pipe, "blocks", None), "inputs", None)
    if isinstance(declared, list):
        return {
            item.name: inspect.Parameter(
                item.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if item.required else item.default,
            )
            for item in declared
            if item.name is not None
        }
    return {name: p for name, p in found.items() if name != "self" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def _run_arguments(taken: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """How to run: few steps, no decoding, all of the noise; and the size that was asked for, not one near it."""
    wanted = {
        **{name: steps for name in taken if name.endswith("num_inference_steps")},
        "output_type": "latent", "strength": 1.0, "use_resolution_binning": False,
        "expand_prompts": False,
    }  # fmt: skip
    return {name: value for name, value in wanted.items() if name in taken}


def _size_arguments(pipe: Any, taken: Mapping[str, Any], sizes: Sizes) -> dict[str, Any]:
    made: dict[str, Any] = {}
    has_media = any(name in taken for name in ("image", "control_image", "video"))
    for name in ("height", "width"):
        value = getattr(sizes, name)
        if value is not None and name in taken:
            made[name] = value
        elif value is not None and not has_media:
            raise UsageError(f"the call of a {type(pipe).__name__} takes no {name}; leave --{name} out")
    if sizes.frames is not None:
        counts = [name for name in ("num_frames", "video_length", "frames") if name in taken]
        if counts:
            made[counts[0]] = sizes.frames
        elif "video" not in taken:
            raise UsageError(f"a {type(pipe).__name__} makes images, which have no frames; leave --frames out")
    return made


def _texts(taken: Mapping[str, Any], sizes: Sizes, given: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    texts: dict[str, Any] = {"prompt": TEXT}
    if sizes.guided:
        texts["negative_prompt"] = "blurred"
    count = next((name for name in _COUNTS if name in taken), None)
    if sizes.batch > 1 and count is not None:
        made[count] = sizes.batch
    prompt = given.get("prompt")
    if isinstance(prompt, (list, tuple)):  # the texts must be of one kind, and as many
        texts = {name: [text] * len(prompt) for name, text in texts.items()}
    elif sizes.batch > 1 and count is None and not isinstance(prompt, str):
        texts = {name: [text] * sizes.batch for name, text in texts.items()}
    return made | {name: text for name, text in texts.items() if name in taken}


class _Media:
    """Makes the images, videos and texts that a pipeline's call takes, by the names of its arguments."""

    def __init__(self, pipe: Any, denoiser: Any, taken: Mapping[str, inspect.Parameter], sizes: Sizes) -> None:
        self._pipe = pipe
        self._denoiser = denoiser
        self._taken = taken
        self._sizes = sizes

    def make(self, name: str, parameter: inspect.Parameter) -> Any:
        """A value for an argument; None where none can be guessed."""
        if "embed" in name or "latent" in name:
            return None
        if "mask" in name:
            return self._video(255) if "video" in name or "video" in self._taken else self._image(255)
        if "video" in name or name in ("conditioning_frames", "frames"):
            return self._video(90)
        if "image" in name or name == "hint":
            return self._image(90)
        if name == "class_labels":
            return [0] * self._sizes.batch
        if "prompt" in name or parameter.annotation in (str, "str"):
            return TEXT
        return None

    def _image(self, grey: int) -> Any:
        from PIL import Image

        height, width = self._size()
        return Image.new("RGB", (width, height), (grey, grey, grey))

    def _video(self, grey: int) -> list[Any]:
        default = self._taken["num_frames"].default if "num_frames" in self._taken else None
        frames = self._sizes.frames or (default if isinstance(default, int) else _FRAMES)
        return [self._image(grey)] * frames

    def _size(self) -> tuple[int, int]:
        """Height and width of the images: those asked for, the call's defaults, or what the configuration says."""
        config = getattr(self._denoiser, "config", {})
        sample = config.get("sample_size", None) if hasattr(config, "get") else None
        sides = sample if isinstance(sample, (list, tuple)) and len(sample) == 2 else (sample, sample)
        factor = getattr(self._pipe, "vae_scale_factor", 8)
        size = []
        for name, side in zip(("height", "width"), sides, strict=True):
            default = self._taken[name].default if name in self._taken else None
            asked = getattr(self._sizes, name)
            size.append(asked or (default if isinstance(default, int) else side * factor if side else _SIDE))
        return size[0], size[1]
