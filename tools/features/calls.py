"""Options of a call: guidance, callbacks, prompts, sizes, and every scheduler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tools.features.feature import Feature, Step, inside
from tools.features.subject import NotApplicable, Subject

StepEnd = Callable[..., dict[str, Any]]


def _at_end(change: StepEnd, *tensors: str) -> Any:
    """Options with a callback that reads and changes tensors."""

    def options(subject: Subject) -> dict[str, Any]:
        known = subject.pipe._callback_tensor_inputs
        return {
            "callback_on_step_end": change,
            "callback_on_step_end_tensor_inputs": [name for name in tensors if name in known],
        }

    return options


def _halve_latents(_pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    return {**tensors, "latents": tensors["latents"] * (0.5 if step == 1 else 1)}


def _other_prompt(_pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    return {**tensors, "prompt_embeds": tensors["prompt_embeds"] * (0.5 if step == 1 else 1)}


def _more_guidance(pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    pipe._guidance_scale = 3.0 + step
    return tensors


def _guidance_off(pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """As diffusers' documentation has it: the prompt's half only, and no guidance."""
    if step == 1:
        pipe._guidance_scale = 0.0
        return {name: tensor.chunk(2)[-1] if name != "latents" else tensor for name, tensor in tensors.items()}
    return tensors


def _interrupt(pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    pipe._interrupt = step >= 1
    return tensors


def _only(*names: str) -> Any:
    def check(subject: Subject) -> None:
        subject.only("the pipeline has no such option", *names)

    return check


_GUIDED = ("StableDiffusion", "StableDiffusionXL", "StableDiffusion3", "AnimateDiff")
_TENSORS = ("latents", "prompt_embeds", "add_text_embeds", "add_time_ids", "pooled_prompt_embeds")


_TAKES_IMAGES = ("StableDiffusion", "StableDiffusionXL", "StableDiffusion3", "Flux")
_READS_GUIDANCE = _GUIDED[:3]  # at every step; AnimateDiff's takes it as it was given


def _skip_layers(subject: Subject) -> None:
    subject.only("the pipeline has no skip_guidance_layers", "StableDiffusion3")


CALLS = inside(
    Step("guidance 1.0", options={"guidance_scale": 1.0}),
    Step("guidance 3.0", options={"guidance_scale": 3.0}),
    Step("guidance rescaled", _only("StableDiffusion", "StableDiffusionXL"), options={"guidance_rescale": 0.7}),
    Step(
        "guidance in a second call (true_cfg_scale)",
        _only("Flux"),
        options={"true_cfg_scale": 3.0, "negative_prompt": "a dog"},
    ),
    Step("guidance switched off in mid-trajectory", _only(*_GUIDED), options=_at_end(_guidance_off, *_TENSORS)),
    Step("callback that changes latents", options=_at_end(_halve_latents, "latents")),
    Step("callback that changes the prompt", options=_at_end(_other_prompt, "prompt_embeds")),
    Step("callback that changes guidance", _only(*_READS_GUIDANCE), options=_at_end(_more_guidance, "latents")),
    Step("callback that interrupts", options=_at_end(_interrupt, "latents")),
    Step("clip_skip", _only("StableDiffusion", "StableDiffusionXL", "StableDiffusion3", "AnimateDiff"),
         options={"clip_skip": 1}),
    Step("skip layers", _skip_layers, options={
        "skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 0.9}),
    Step("several prompts", options={"prompt": ["a cat", "a red dog"]}),
    Step("several images per prompt", _only(*_TAKES_IMAGES), options={"num_images_per_prompt": 2}),
    Step("negative prompt", _only(*_GUIDED), options={"negative_prompt": "a blue moon"}),
    Step("another size", options={"height": 48, "width": 32}),
    Step("more frames", _only("AnimateDiff"), options={"num_frames": 4}),
    Step("fewer frames", _only("AnimateDiff"), options={"num_frames": 1}),
    Step("more steps", options={"steps": 6}),
    Step("output_type pt", options={"output_type": "pt"}),
    Step("another prompt", options={"prompt": "the moon"}),
    Step("the first prompt again", shows=False),
)  # fmt: skip


def _scheduler_names() -> list[str]:
    import diffusers

    return sorted(
        name
        for name in dir(diffusers.schedulers)
        if name.endswith("Scheduler") and "Flax" not in name and hasattr(diffusers, name)
    )


def _use_scheduler(name: str) -> Any:
    def change(subject: Subject) -> None:
        import diffusers

        cls = getattr(diffusers, name)
        old = subject.pipe.scheduler
        flow = "FlowMatch" in type(old).__name__
        if flow != ("FlowMatch" in name) and name not in {c.__name__ for c in old.compatibles}:
            raise NotApplicable("the pipeline does not accept it")
        subject.store.once(("scheduler", id(subject)), lambda: old)
        subject.pipe.scheduler = cls.from_config(old.config)

    return change


def _first_scheduler(subject: Subject) -> None:
    subject.pipe.scheduler = subject.store.once(("scheduler", id(subject)), lambda: subject.pipe.scheduler)


def schedulers() -> Feature:
    """Every scheduler class that diffusers has."""
    return inside(
        *(
            Step(f"scheduler: {name}", _use_scheduler(name), _first_scheduler, {"steps": 6}, False)
            for name in _scheduler_names()
        )
    )


FEATURES: list[Feature] = [CALLS, schedulers()]
