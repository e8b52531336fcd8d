"""LoRA and textual inversion: features that add weights to a pipeline or change them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tools.features.feature import Change, Feature, Step, before, inside
from tools.features.subject import Subject

_LAYERS = {"unet": ["to_q", "to_v", "conv1"], "transformer": ["to_q", "to_v", "ff.net.2"]}


def lora_file(subject: Subject, seed: int) -> Path:
    """The folder of a LoRA for this pipeline, with random weights that matter."""
    path: Path = subject.store.once(("lora", subject.name, seed), lambda: _save_lora(subject, seed))
    return path


def _save_lora(subject: Subject, seed: int) -> Path:
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    donor = Subject(subject.name, subject.store)
    torch.manual_seed(seed)
    name = donor.denoiser_name
    config = LoraConfig(r=2, lora_alpha=4, target_modules=_LAYERS[name], init_lora_weights=False)
    donor.denoiser.add_adapter(config, adapter_name="donor")
    folder = subject.folder(f"lora-{seed}")
    state = get_peft_model_state_dict(donor.denoiser, adapter_name="donor")
    type(donor.pipe).save_lora_weights(folder, **{f"{name}_lora_layers": state})
    return folder


def _load(name: str, seed: int) -> Change:
    def load(subject: Subject) -> None:
        subject.need(subject.pipe, "load_lora_weights")
        subject.pipe.load_lora_weights(lora_file(subject, seed), adapter_name=name)

    return load


_first, _second = _load("first", 1), _load("second", 2)


def _then(*changes: Change) -> Change:
    def change(subject: Subject) -> None:
        for one in changes:
            one(subject)

    return change


def _textual_inversion(subject: Subject) -> None:
    subject.need(subject.pipe, "load_textual_inversion")
    for encoder, tokenizer in (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")):
        if getattr(subject.pipe, encoder, None) is not None:
            text_encoder = getattr(subject.pipe, encoder)
            width = text_encoder.get_input_embeddings().weight.shape[1]
            vector = 5 * torch.randn(width, generator=torch.Generator().manual_seed(1))
            subject.pipe.load_textual_inversion(
                {"<moon>": vector},
                token="<moon>",
                text_encoder=text_encoder,
                tokenizer=getattr(subject.pipe, tokenizer),
            )


def _scale(subject: Subject) -> None:
    subject.pipe.set_adapters("first", 0.3)


def _fuse(subject: Subject) -> None:
    subject.pipe.fuse_lora()


def _unload(subject: Subject) -> None:
    subject.pipe.unload_lora_weights()


def _pipe(method: str, *arguments: Any) -> Change:
    def change(subject: Subject) -> None:
        getattr(subject.pipe, method)(*arguments)

    return change


FEATURES: list[Feature] = [
    before("LoRA: load", _first),
    before("LoRA: scale", _then(_first, _scale)),
    before("LoRA: two", _then(_first, _second, _pipe("set_adapters", ["first", "second"], [0.5, 0.7]))),
    before("LoRA: fuse", _then(_first, _fuse)),
    before("LoRA: fuse and unload", _then(_first, _fuse, _unload)),
    inside(
        Step("LoRA: load, inside", _first),
        Step("LoRA: scale, inside", _scale),
        Step("LoRA: load a second, inside", _second),
        Step("LoRA: mix, inside", _pipe("set_adapters", ["first", "second"], [0.5, 0.7])),
        Step("LoRA: swap, inside", _pipe("set_adapters", "second")),
        Step("LoRA: delete, inside", _pipe("delete_adapters", "first")),
        Step("LoRA: disable, inside", _pipe("disable_lora"), shows=False),
        Step("LoRA: enable, inside", _pipe("enable_lora")),
        Step("LoRA: fuse, inside", _fuse),
        Step("LoRA: unfuse, inside", _pipe("unfuse_lora")),
        Step("LoRA: unload, inside", _unload, shows=False),
    ),
    inside(
        Step("textual inversion, inside", _textual_inversion, options={"prompt": "a <moon>"}),
    ),
]
