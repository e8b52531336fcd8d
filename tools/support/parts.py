"""The parts of small pipelines: tokenizers, encoders and autoencoders with random weights, schedulers, pictures."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from tools.small_pipelines import t5 as t5_encoder
from tools.small_pipelines import text_encoder, tokenizer
from tools.support.denoisers import DENOISERS
from tools.support.tiny_denoiser import randomise

SIDE = 32  # of pictures, in pixels


@cache
def words() -> Any:
    """A tokenizer that also knows how a chat is written."""
    with tempfile.TemporaryDirectory() as folder:
        made = tokenizer(Path(folder))
    made.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    return made


def clip(width: int = 32, cls: str = "CLIPTextModel") -> Any:
    """CLIP's text encoder; "CLIPTextModelWithProjection" for one with a pooled output of its own."""
    return text_encoder(cls, width, len(words()))


def t5(width: int = 24) -> Any:
    """T5's encoder."""
    return t5_encoder(width, len(words()))


def language_model(name: str, width: int = 24, **config: Any) -> Any:
    """A language model of a family of transformers ("Qwen3", "Gemma2"), as text encoders are used."""
    import transformers

    made = getattr(transformers, f"{name}Config")(
        vocab_size=len(words()), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=width // 2, pad_token_id=1, bos_token_id=0,
        eos_token_id=1, **config,
    )  # fmt: skip
    return getattr(transformers, f"{name}Model")(made).eval()


def vision(width: int = 32, cls: str = "CLIPVisionModelWithProjection", side: int = SIDE) -> dict[str, Any]:
    """CLIP's image encoder, and the processor of its pictures."""
    import transformers

    config = transformers.CLIPVisionConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=2, image_size=side,
        patch_size=16, projection_dim=width,
    )  # fmt: skip
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return {"image_encoder": getattr(transformers, cls)(config).eval(), "feature_extractor": processor}


def denoiser(name: str, **changes: Any) -> Any:
    """A denoiser of DENOISERS, with changes to its configuration."""
    return DENOISERS[name].module(**changes)


def made(name: str, **config: Any) -> Any:
    """A model of diffusers, with random weights."""
    import diffusers

    model = getattr(diffusers, name)(**config).eval()
    randomise(model)
    return model


def scheduler(name: str, **config: Any) -> Any:
    """A scheduler of diffusers; without a name's ending."""
    import diffusers

    return getattr(diffusers, f"{name}Scheduler")(**config)


def picture(seed: int = 0, side: int = SIDE) -> Any:
    """A picture of noise."""
    import numpy as np
    from PIL import Image

    return Image.fromarray(np.random.RandomState(seed).randint(0, 255, (side, side, 3), dtype=np.uint8))


def picture_mask(side: int = SIDE) -> Any:
    """A mask: the left half of a picture."""
    from PIL import Image

    drawn = Image.new("L", (side, side), 0)
    drawn.paste(255, (0, 0, side // 2, side))
    return drawn


def clip_of(frames: int = 2) -> list[Any]:
    """The pictures of a video."""
    return [picture(seed) for seed in range(frames)]
