"""Small diffusers pipelines of the real classes with random weights, for the matrix of features and for tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_WORDS = ["a", "cat", "dog", "red", "blue", "photo", "of", "on", "the", "moon"]


def tokenizer(folder: Path) -> Any:
    """A CLIP tokenizer of a few words; anything else it spells."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted({letter for word in _WORDS for letter in word})
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


def text_encoder(cls_name: str, width: int, vocabulary: int) -> Any:
    """CLIP's text encoder, of a class of transformers."""
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=16, projection_dim=width,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return getattr(transformers, cls_name)(config).eval()


def t5(width: int, vocabulary: int) -> Any:
    """T5's encoder, which takes what any tokenizer makes."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=vocabulary, d_model=width, d_kv=16, d_ff=2 * width, num_layers=1, num_heads=2)
    ).eval()


def vae(**options: Any) -> Any:
    """An autoencoder that halves an image's sides; options override its configuration."""
    from diffusers import AutoencoderKL

    config: dict[str, Any] = {
        "block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2, "sample_size": 32,
    }  # fmt: skip
    return AutoencoderKL(**{**config, **options}).eval()


_UNET: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def stable_diffusion(folder: Path) -> Any:
    """StableDiffusionPipeline."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    words = tokenizer(folder / "words")
    return StableDiffusionPipeline(
        vae=vae(), text_encoder=text_encoder("CLIPTextModel", 32, len(words)), tokenizer=words,
        unet=UNet2DConditionModel(**_UNET, cross_attention_dim=32, attention_head_dim=4).eval(),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_xl(folder: Path) -> Any:
    """StableDiffusionXLPipeline."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    words = tokenizer(folder / "words")
    unet = UNet2DConditionModel(
        **_UNET, cross_attention_dim=64, attention_head_dim=(2, 4), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=80,
        transformer_layers_per_block=(1, 2),
    ).eval()  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=vae(), text_encoder=text_encoder("CLIPTextModel", 32, len(words)), tokenizer=words,
        text_encoder_2=text_encoder("CLIPTextModelWithProjection", 32, len(words)), tokenizer_2=words,
        unet=unet, scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="leading"),
    )  # fmt: skip


def stable_video_diffusion(_folder: Path) -> Any:
    """StableVideoDiffusionPipeline."""
    from diffusers import (
        AutoencoderKLTemporalDecoder,
        EulerDiscreteScheduler,
        StableVideoDiffusionPipeline,
        UNetSpatioTemporalConditionModel,
    )
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    unet = UNetSpatioTemporalConditionModel(
        sample_size=16, block_out_channels=(32, 64), layers_per_block=1, num_frames=2, in_channels=8, out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=32, num_attention_heads=4, addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=48,
    ).eval()  # fmt: skip
    encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=224,
            patch_size=32, projection_dim=32,
        )
    ).eval()  # fmt: skip
    decoder = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 64), latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 2, sample_size=32
    ).eval()
    return StableVideoDiffusionPipeline(
        vae=decoder, image_encoder=encoder, unet=unet,
        scheduler=EulerDiscreteScheduler(
            prediction_type="v_prediction", timestep_type="continuous", sigma_max=700.0, sigma_min=0.002,
            use_karras_sigmas=True,
        ),
        feature_extractor=CLIPImageProcessor(),
    )  # fmt: skip


def animatediff(folder: Path) -> Any:
    """AnimateDiffPipeline."""
    from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter, UNet2DConditionModel

    words = tokenizer(folder / "words")
    adapter = MotionAdapter(
        block_out_channels=(32, 64), motion_layers_per_block=1, motion_norm_num_groups=8, motion_num_attention_heads=4
    )
    return AnimateDiffPipeline(
        vae=vae(), text_encoder=text_encoder("CLIPTextModel", 32, len(words)), tokenizer=words,
        unet=UNet2DConditionModel(**_UNET, cross_attention_dim=32, attention_head_dim=4).eval(),
        motion_adapter=adapter, scheduler=DDIMScheduler(beta_schedule="linear", clip_sample=False),
        image_encoder=None, feature_extractor=None,
    )  # fmt: skip


def stable_diffusion_3(folder: Path) -> Any:
    """StableDiffusion3Pipeline."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    words = tokenizer(folder / "words")
    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=64, caption_projection_dim=32, pooled_projection_dim=64,
        pos_embed_max_size=32,
    ).eval()  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(shift_factor=0.1),
        text_encoder=text_encoder("CLIPTextModelWithProjection", 32, len(words)), tokenizer=words,
        text_encoder_2=text_encoder("CLIPTextModelWithProjection", 32, len(words)), tokenizer_2=words,
        text_encoder_3=t5(64, len(words)), tokenizer_3=words,
    )  # fmt: skip


def flux(folder: Path) -> Any:
    """FluxPipeline: guidance is an input of the denoiser, which has no second branch."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    words = tokenizer(folder / "words")
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=True, axes_dims_rope=(4, 4, 8),
    ).eval()  # fmt: skip
    return FluxPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(shift_factor=0.1),
        text_encoder=text_encoder("CLIPTextModel", 32, len(words)), tokenizer=words,
        text_encoder_2=t5(32, len(words)), tokenizer_2=words,
    )  # fmt: skip


MAKERS: dict[str, Callable[[Path], Any]] = {
    "stable_diffusion": stable_diffusion,
    "stable_diffusion_xl": stable_diffusion_xl,
    "stable_video_diffusion": stable_video_diffusion,
    "animatediff": animatediff,
    "stable_diffusion_3": stable_diffusion_3,
    "flux": flux,
}


def saved(name: str, folder: Path) -> Path:
    """Make a pipeline from seed 0, save it and return its folder."""
    torch.manual_seed(0)
    pipe = MAKERS[name](folder / f"{name}-parts")
    target = folder / name
    pipe.save_pretrained(target)
    return target


def load(folder: Path) -> Any:
    """Load a saved pipeline, without its progress bar."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(pipe: Any, *, steps: int = 5, seed: int = 0, prompt: str = "a red cat", **options: Any) -> torch.Tensor:
    """Run a pipeline to its latents; options override the defaults."""
    import numpy as np
    from PIL import Image

    given: dict[str, Any] = {"num_inference_steps": steps, "output_type": "latent"}
    given["generator"] = torch.Generator("cpu").manual_seed(seed)
    kind = type(pipe).__name__
    if kind == "StableVideoDiffusionPipeline":
        pixels = np.random.RandomState(seed).randint(0, 255, (32, 32, 3), dtype=np.uint8)
        given |= {"image": Image.fromarray(pixels), "height": 32, "width": 32, "num_frames": 2, "decode_chunk_size": 2}
    else:
        given["prompt"] = prompt
    if kind == "AnimateDiffPipeline":
        given |= {"num_frames": 2}
    if kind in ("StableDiffusion3Pipeline", "FluxPipeline"):
        given |= {"max_sequence_length": 16, "height": 32, "width": 32}
    result = pipe(**{**given, **options})
    made: torch.Tensor = result.frames if hasattr(result, "frames") else result.images
    return made
