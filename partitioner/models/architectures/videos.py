"""Transformers that make videos: Wan, HunyuanVideo, LTX, CogVideoX, Mochi, Kandinsky 5."""

from __future__ import annotations

from typing import Any

from partitioner.models.inputs import Inputs, latent, prompt, timestep
from partitioner.models.registry import Request, register_model


@register_model("WanTransformer3DModel", guidance_style="two-calls", video=True, dtype="bfloat16")
def _wan(request: Request) -> Inputs:
    """Wan 2.1 and 2.2; with expand_timesteps every token has a timestep of its own (Wan 2.2 TI2V)."""
    config, rows = request.config, request.rows
    frames = request.latent_frames(81)
    height, width = request.latent_pixels((480, 832), patch=config["patch_size"][1])
    each = (frames * (height // 2) * (width // 2),) if request.pipeline.get("expand_timesteps") else ()
    inputs: dict[str, Any] = {
        "hidden_states": latent(rows, config["in_channels"], frames, height, width),
        "timestep": timestep(rows, *each),
        "encoder_hidden_states": prompt(rows, 512, config["text_dim"]),
    }
    if config["image_dim"] is not None:
        inputs["encoder_hidden_states_image"] = prompt(rows, 257, config["image_dim"])
    return inputs


@register_model(
    "HunyuanVideoTransformer3DModel",
    guidance_style="none",
    video=True,
    dtype="bfloat16",
    pipelines=("HunyuanVideoPipeline",),
)
def _hunyuan_video(request: Request) -> Inputs:
    """HunyuanVideo from text: 256 tokens, and a pooled text."""
    config, rows = request.config, request.rows
    pixels = request.latent_pixels((720, 1280), patch=config["patch_size"])
    inputs: dict[str, Any] = {
        "hidden_states": latent(rows, config["in_channels"], request.latent_frames(129), *pixels),
        "timestep": timestep(rows, dtype=None),
        "encoder_hidden_states": prompt(rows, 256, config["text_embed_dim"]),
        "encoder_attention_mask": prompt(rows, 256),
        "pooled_projections": prompt(rows, config["pooled_projection_dim"]),
    }
    if config["guidance_embeds"]:
        inputs["guidance"] = prompt(rows)
    return inputs


@register_model(
    "HunyuanVideo15Transformer3DModel",
    guidance_style="two-calls",
    video=True,
    dtype="bfloat16",
    pipelines=(
        "HunyuanVideo15Pipeline",
        "HunyuanVideo15ImageToVideoPipeline",
    ),
)
def _hunyuan_video_15(request: Request) -> Inputs:
    """HunyuanVideo 1.5: 1000 tokens of text, 256 of what is to be written, and an image's, which may be zeros."""
    config, rows = request.config, request.rows
    default = (480, 848) if config["target_size"] == 640 else (720, 1280)
    pixels = request.latent_pixels(default, patch=config["patch_size"], factor=16)
    inputs: dict[str, Any] = {
        "hidden_states": latent(rows, config["in_channels"], request.latent_frames(121), *pixels),
        "timestep": timestep(rows, dtype=None),
        "encoder_hidden_states": prompt(rows, 1000, config["text_embed_dim"]),
        "encoder_attention_mask": prompt(rows, 1000),
        "encoder_hidden_states_2": prompt(rows, 256, config["text_embed_2_dim"]),
        "encoder_attention_mask_2": prompt(rows, 256),
        "image_embeds": prompt(rows, 729, config["image_embed_dim"]),
    }
    if config["use_meanflow"]:
        inputs["timestep_r"] = timestep(rows, dtype=None)
    return inputs


@register_model("LTXVideoTransformer3DModel", video=True, dtype="bfloat16", pipelines=("LTXPipeline",))
def _ltx(request: Request) -> Inputs:
    """LTX-Video: packed tokens, whose positions follow from the latent's size and the frame rate of 25."""
    config, rows = request.config, request.rows
    frames = request.latent_frames(161, factor=8)
    height, width = request.latent_pixels((512, 704), factor=32)
    spatial = request.vae_factor(32)
    temporal = int(request.vae.get("temporal_compression_ratio") or 8)
    return {
        "hidden_states": latent(rows, frames * height * width, config["in_channels"]),
        "encoder_hidden_states": prompt(rows, 128, config["caption_channels"]),
        "timestep": timestep(rows),
        "encoder_attention_mask": prompt(rows, 128, dtype="bool"),
        "num_frames": frames,
        "height": height,
        "width": width,
        "rope_interpolation_scale": (temporal / 25, spatial, spatial),
    }


@register_model("LTX2VideoTransformer3DModel", video=True, dtype="bfloat16", pipelines=("LTX2Pipeline",))
def _ltx2(request: Request) -> Inputs:
    """LTX-2: a video and its sound, 1024 tokens of text for each, at 24 frames a second."""
    config, rows = request.config, request.rows
    frames = request.latent_frames(121, factor=8)
    height, width = request.latent_pixels((512, 768), factor=32)
    tokens, rate = frames * height * width, 24.0
    sounds = config["audio_sampling_rate"] / config["audio_hop_length"] / config["audio_scale_factor"]
    audio = round((121 if request.frames is None else request.frames) / rate * sounds)
    whole = config["use_prompt_embeddings"]
    return {
        "hidden_states": latent(rows, tokens, config["in_channels"]),
        "audio_hidden_states": latent(rows, audio, config["audio_in_channels"]),
        "encoder_hidden_states": prompt(rows, 1024, config["caption_channels" if whole else "cross_attention_dim"]),
        "audio_encoder_hidden_states": prompt(
            rows, 1024, config["caption_channels" if whole else "audio_cross_attention_dim"]
        ),
        "timestep": timestep(rows),
        "sigma": timestep(rows),
        "encoder_attention_mask": prompt(rows, 1024, dtype="int64"),
        "audio_encoder_attention_mask": prompt(rows, 1024, dtype="int64"),
        "num_frames": frames,
        "height": height,
        "width": width,
        "fps": rate,
        "audio_num_frames": audio,
        "video_coords": prompt(rows, 3, tokens, 2, dtype="float32"),
        "audio_coords": prompt(rows, 1, audio, 2, dtype="float32"),
        "isolate_modalities": False,
        "use_cross_timestep": True,
    }


@register_model(
    "CogVideoXTransformer3DModel",
    video=True,
    dtype="bfloat16",
    pipelines=(
        "CogVideoXPipeline",
        "CogVideoXVideoToVideoPipeline",
    ),
)
def _cogvideox(request: Request) -> Inputs:
    """CogVideoX from text or a video: frames come before channels, and rotary tables are inputs."""
    config, rows = request.config, request.rows
    patch, patch_t = config["patch_size"], config["patch_size_t"] or 1
    factor = request.vae_factor()
    sample = (config["sample_height"] * factor, config["sample_width"] * factor)
    height, width = request.latent_pixels(sample, patch=patch)
    frames = request.latent_frames(config["sample_frames"])
    frames += -frames % patch_t  # padded, CogVideoX 1.5
    inputs: dict[str, Any] = {
        "hidden_states": latent(rows, frames, config["in_channels"], height, width),
        "encoder_hidden_states": prompt(rows, config["max_text_seq_length"], config["text_embed_dim"]),
        "timestep": timestep(rows),
    }
    if config["use_rotary_positional_embeddings"]:
        tokens = (frames // patch_t) * (height // patch) * (width // patch)
        table = prompt(tokens, config["attention_head_dim"], dtype="float32")
        inputs["image_rotary_emb"] = (table, table)
    return inputs


@register_model("MochiTransformer3DModel", video=True, dtype="bfloat16")
def _mochi(request: Request) -> Inputs:
    """Mochi: every 6 frames make one, after the first."""
    config, rows = request.config, request.rows
    pixels = request.latent_pixels((480, 848), patch=config["patch_size"])
    return {
        "hidden_states": latent(rows, config["in_channels"], request.latent_frames(19, factor=6), *pixels),
        "encoder_hidden_states": prompt(rows, 256, config["text_embed_dim"]),
        "timestep": timestep(rows, dtype=None),
        "encoder_attention_mask": prompt(rows, 256, dtype="bool"),
    }


@register_model(
    "Kandinsky5Transformer3DModel",
    guidance_style="two-calls",
    video=True,
    dtype="bfloat16",
    pipelines=(
        "Kandinsky5T2VPipeline",
        "Kandinsky5I2VPipeline",
    ),
)
def _kandinsky5(request: Request) -> Inputs:
    """Kandinsky 5 from text: channels come last, twice and a mask where it can take an image; positions are inputs."""
    config, rows = request.config, request.rows
    frames, (temporal, high, wide) = request.latent_frames(121), config["patch_size"]
    height, width = request.latent_pixels((512, 768), patch=high)
    channels = 2 * config["in_visual_dim"] + 1 if config["visual_cond"] else config["in_visual_dim"]
    places = [prompt(size, dtype="int64") for size in (frames // temporal, height // high, width // wide)]
    sizes = (height * request.vae_factor(), width * request.vae_factor())
    return {
        "hidden_states": latent(rows, frames, height, width, channels),
        "encoder_hidden_states": prompt(rows, 512, config["in_text_dim"]),
        "timestep": timestep(rows, dtype=None),
        "pooled_projections": prompt(rows, config["in_text_dim2"]),
        "visual_rope_pos": places,
        "text_rope_pos": prompt(512, dtype="int64"),
        "scale_factor": (1, 2, 2) if all(480 <= size <= 854 for size in sizes) else (1, 3.16, 3.16),
    }
