"""Attention processors, hooks, caches and compilation: features that change what the denoiser's modules do."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from tools.features.feature import Feature, Step, before, both, inside
from tools.features.subject import NotApplicable, Subject


class _Scaled:
    """An attention processor of the user's own, without state: another's, times 0.9."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return _times(self.inner(attn, hidden_states, *args, **kwargs), 0.9)


class _Counting(_Scaled):
    """One that counts its calls, as prompt-to-prompt's does, and does something else every time."""

    calls = 0

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return _times(self.inner(attn, hidden_states, *args, **kwargs), 1 / self.calls)


def _times(result: Any, factor: float) -> Any:
    """The tensor, or those of a tuple, times a factor; None, as the last block of Stable Diffusion 3 gives, stays."""
    if isinstance(result, tuple):
        return tuple(_times(item, factor) for item in result)
    return None if result is None else result * factor


def _processors(cls: type[_Scaled]) -> Any:
    def change(subject: Subject) -> None:
        denoiser = subject.denoiser
        denoiser.set_attn_processor({name: cls(inner) for name, inner in denoiser.attn_processors.items()})

    return change


def _inner_processors(subject: Subject) -> None:
    denoiser = subject.denoiser
    denoiser.set_attn_processor({name: scaled.inner for name, scaled in denoiser.attn_processors.items()})


def _plain_attention(subject: Subject) -> None:
    from diffusers.models.attention_processor import AttnProcessor

    subject.only("it has no other standard processor", "StableDiffusion", "StableDiffusionXL", "AnimateDiff")
    subject.denoiser.set_attn_processor(AttnProcessor())


def _inner_module(subject: Subject) -> nn.Module:
    denoiser = subject.denoiser
    inner: nn.Module = denoiser.mid_block if hasattr(denoiser, "mid_block") else denoiser.transformer_blocks[-1]
    return inner


class _Hook:
    """Adds a forward hook, and removes it."""

    def __init__(self, place: Any, hook: Any) -> None:
        self.place = place
        self.hook = hook
        self.handle: Any = None
        self.seen: list[Any] = []

    def add(self, subject: Subject) -> None:
        self.seen = []
        self.handle = self.place(subject).register_forward_hook(self.hook(self.seen))

    def remove(self, _subject: Subject) -> None:
        self.handle.remove()


def _scaling(_seen: list[Any]) -> Any:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        if hasattr(output, "sample"):
            output.sample = output.sample * 0.9
            return output
        return _times(output, 0.9)

    return hook


def _collecting(seen: list[Any]) -> Any:
    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.append(output)

    return hook


def _hooked(row: str, place: Any, make: Any, *, shows: bool) -> list[Feature]:
    hook = _Hook(place, make)
    return both(row, hook.add, hook.remove, shows=shows, seen=lambda: len(hook.seen))


def _compile_wrapper(subject: Subject) -> None:
    setattr(subject.pipe, subject.denoiser_name, torch.compile(subject.denoiser, backend="eager"))


def _compile_in_place(subject: Subject) -> None:
    subject.denoiser.compile(backend="eager")


def _cache(name: str, **options: Any) -> Any:
    def change(subject: Subject) -> None:
        import diffusers

        subject.need(subject.denoiser, "enable_cache")
        if "current_timestep_callback" in options:
            options["current_timestep_callback"] = lambda: subject.pipe._current_timestep
        subject.denoiser.enable_cache(getattr(diffusers, name)(**options))

    return change


def _disable_cache(subject: Subject) -> None:
    subject.denoiser.disable_cache()


def _freeu(subject: Subject) -> None:
    subject.need(subject.pipe, "enable_freeu")
    subject.pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)


def _fuse_qkv(subject: Subject) -> None:
    subject.need(subject.denoiser, "fuse_qkv_projections")
    subject.denoiser.fuse_qkv_projections()


def _unfuse_qkv(subject: Subject) -> None:
    subject.denoiser.unfuse_qkv_projections()


def _replaced(subject: Subject) -> None:
    other = copy.deepcopy(subject.denoiser)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
    setattr(subject.pipe, subject.denoiser_name, other)


def _fresh(subject: Subject) -> Any:
    """A copy of the denoiser, in a pipeline of its own."""
    made = type(subject.pipe)(**{**subject.pipe.components, subject.denoiser_name: copy.deepcopy(subject.denoiser)})
    made.set_progress_bar_config(disable=True)
    return made


def _reloaded(subject: Subject, whole: bool) -> Any:
    """What was saved inside the block, loaded again."""
    from tools.small_pipelines import load

    folder = subject.folder("saved")
    if whole:
        subject.pipe.save_pretrained(folder)
        return load(folder)
    subject.denoiser.save_pretrained(folder / "denoiser")
    fresh = type(subject.denoiser).from_pretrained(folder / "denoiser")
    made = type(subject.pipe)(**{**subject.pipe.components, subject.denoiser_name: fresh})
    made.set_progress_bar_config(disable=True)
    return made


def _backend(name: str) -> Any:
    def change(subject: Subject) -> None:
        subject.need(subject.denoiser, "set_attention_backend")
        subject.denoiser.set_attention_backend(name)

    return change


def _weights(factor: float, by_data: bool) -> Any:
    def change(subject: Subject) -> None:
        for parameter in subject.denoiser.parameters():
            if by_data:
                parameter.data.mul_(factor)
            else:
                with torch.no_grad():
                    parameter.mul_(factor)

    return change


def _own_class(subject: Subject) -> None:
    """The pipeline asks by class, or looks through the modules: what PAG, IP-Adapter and FreeU do."""
    if type(subject.denoiser).__name__ not in ("UNet2DConditionModel", "UNetMotionModel", "SD3Transformer2DModel",
                                               "FluxTransformer2DModel"):  # fmt: skip
        raise NotApplicable("another class")


FEATURES: list[Feature] = [
    *both("attention processors: standard", _plain_attention, shows=False),
    *both("attention processors: stateless, one's own", _processors(_Scaled), _inner_processors),
    *both("attention processors: with state", _processors(_Counting), _inner_processors, ends_alike=False),
    *both("attention backend", _backend("_native_math"), lambda s: s.denoiser.reset_attention_backend(), shows=False),
    *both(
        "attention slicing",
        lambda s: s.pipe.enable_attention_slicing("max"),
        lambda s: s.pipe.disable_attention_slicing(),
        shows=False,
    ),
    *_hooked("hook on the denoiser", lambda s: s.denoiser, _scaling, shows=True),
    *_hooked("hook on the denoiser that collects", lambda s: s.denoiser, _collecting, shows=False),
    *_hooked("hook on an inner module", _inner_module, _scaling, shows=True),
    *_hooked("hook on an inner module that collects", _inner_module, _collecting, shows=False),
    *both("FreeU", _freeu, lambda s: s.pipe.disable_freeu()),
    *both("fused QKV", _fuse_qkv, _unfuse_qkv, shows=False),
    *both(
        "cache: first block",
        _cache("FirstBlockCacheConfig", threshold=0.5),
        _disable_cache,
        shows=False,
        ends_alike=False,
    ),
    *both(
        "cache: pyramid attention broadcast",
        _cache(
            "PyramidAttentionBroadcastConfig",
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(-1, 1001),
            current_timestep_callback=None,
        ),
        _disable_cache,
        shows=False,
        ends_alike=False,
    ),
    *both(
        "cache: faster cache",
        _cache(
            "FasterCacheConfig",
            spatial_attention_block_skip_range=2,
            current_timestep_callback=None,
            spatial_attention_timestep_skip_range=(-1, 1001),
        ),
        _disable_cache,
        shows=False,
        ends_alike=False,
    ),
    *both(
        "gradient checkpointing",
        lambda s: s.denoiser.enable_gradient_checkpointing(),
        lambda s: s.denoiser.disable_gradient_checkpointing(),
        shows=False,
    ),
    *both("torch.compile(denoiser)", _compile_wrapper, shows=False),
    *both("denoiser.compile()", _compile_in_place, shows=False),
    inside(
        Step("weights changed in place", _weights(0.98, False)),
        Step("weights changed by .data", _weights(0.98, True)),
    ),
    inside(Step("another denoiser in its place, inside", _replaced)),
    inside(
        Step("the denoiser's class is asked for, inside", _own_class, shows=False),
        Step("deepcopy, inside", _fresh, shows=False),
        Step("save_pretrained of the denoiser, inside", lambda s: _reloaded(s, False), shows=False),
        Step("save_pretrained of the pipeline, inside", lambda s: _reloaded(s, True), shows=False),
    ),
    Feature(before("fused QKV, planned by parallelize", _fuse_qkv, shows=False).steps, True, branches=2),
    Feature(before("FreeU, planned by parallelize", _freeu).steps, True, branches=2),
]
