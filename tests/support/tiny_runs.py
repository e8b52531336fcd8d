"""RUNS: one step of each built-in name's pipeline, around a small denoiser, to see what it is called with.

Sizes are the smallest that the pipelines take. Prompts are given as embeddings, so that no text encoder is needed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from torch import nn

SIZE: dict[str, Any] = {"height": 64, "width": 64}
ONE_STEP: dict[str, Any] = {"num_inference_steps": 1, "output_type": "latent"}
FLOW = diffusers.FlowMatchEulerDiscreteScheduler


@dataclass(frozen=True)
class Run:
    """How to run a pipeline once.

    Attributes:
        run: Runs it around a denoiser.
        sizes: What the spec is asked for, to describe the same call.
        index: The pipeline's settings, as in its model_index.json.
        config: What of the denoiser differs from small_denoiser's.
        steps: How many it runs.
    """

    run: Callable[[Any], None]
    sizes: Mapping[str, int] = field(default_factory=lambda: SIZE)
    index: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 1


def tiny_vae() -> diffusers.AutoencoderKL:
    """Of the usual factor of 8."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, shift_factor=0.0,
    )  # fmt: skip


def texts(tokens: int, width: int = 16, names: tuple[str, str] = ("prompt_embeds", "negative_prompt_embeds")) -> Any:
    """The embeddings of a prompt and of its negative."""
    return {names[0]: torch.ones(1, tokens, width), names[1]: torch.zeros(1, tokens, width)}


def masks(tokens: int, dtype: torch.dtype, names: tuple[str, str]) -> Any:
    """Of texts of which every token counts."""
    return {name: torch.ones(1, tokens, dtype=dtype) for name in names}


ATTENTION_MASKS = ("prompt_attention_mask", "negative_prompt_attention_mask")
POOLED = {"pooled_prompt_embeds": torch.ones(1, 16), "negative_pooled_prompt_embeds": torch.zeros(1, 16)}


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
    )(**texts(77), **SIZE, **ONE_STEP)


def run_controlnet(unet: Any) -> None:
    controlnet = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 8, 8))
    scheduler = diffusers.PNDMScheduler(steps_offset=1, skip_prk_steps=True)
    diffusers.StableDiffusionControlNetPipeline(
        tiny_vae(), None, None, unet, controlnet, scheduler, None, None, requires_safety_checker=False
    )(image=torch.zeros(1, 3, 64, 64), **texts(77), **SIZE, **ONE_STEP)  # fmt: skip


def run_sdxl(unet: Any) -> None:
    diffusers.StableDiffusionXLPipeline(
        tiny_vae(), None, None, None, None, unet, diffusers.EulerDiscreteScheduler(), add_watermarker=False
    )(**texts(77), **POOLED, **SIZE, **ONE_STEP)


def run_sdxl_refiner(unet: Any) -> None:
    diffusers.StableDiffusionXLImg2ImgPipeline(
        tiny_vae(), None, None, None, None, unet, diffusers.EulerDiscreteScheduler(), None, None,
        requires_aesthetics_score=True, add_watermarker=False,
    )(image=torch.zeros(1, 3, 64, 64), strength=1.0, **texts(77), **POOLED, **ONE_STEP)  # fmt: skip


def run_sdxl_inpaint(unet: Any) -> None:
    diffusers.StableDiffusionXLInpaintPipeline(
        tiny_vae(), None, None, None, None, unet, diffusers.EulerDiscreteScheduler(), None, None,
        add_watermarker=False,
    )(
        image=torch.zeros(1, 3, 64, 64), mask_image=torch.ones(1, 1, 64, 64), strength=1.0,
        **texts(77), **POOLED, **SIZE, **ONE_STEP,
    )  # fmt: skip


class Part(nn.Module):
    """Stands for a part of a pipeline, with the attributes that are asked for."""

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        vars(self).update(attributes)


class ImageEncoder(Part):
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
        torch.zeros(1, 3, 64, 64), **SIZE, **ONE_STEP
    )


def run_animatediff(unet: Any) -> None:
    diffusers.AnimateDiffPipeline(tiny_vae(), None, None, unet, None, diffusers.DDIMScheduler(clip_sample=False))(
        **texts(77), num_frames=3, **SIZE, **ONE_STEP
    )


def run_animatediff_xl(unet: Any) -> None:
    diffusers.AnimateDiffSDXLPipeline(
        tiny_vae(), None, None, None, None, unet, None, diffusers.EulerDiscreteScheduler()
    )(**texts(77), **POOLED, num_frames=3, **SIZE, **ONE_STEP)


def run_sd3(transformer: Any) -> None:
    diffusers.StableDiffusion3Pipeline(transformer, FLOW(), tiny_vae(), *[None] * 6)(
        **texts(333), **POOLED, **SIZE, **ONE_STEP
    )


def run_flux(transformer: Any) -> None:
    diffusers.FluxPipeline(FLOW(), tiny_vae(), None, None, None, None, transformer)(
        prompt_embeds=torch.ones(1, 512, 16), pooled_prompt_embeds=torch.ones(1, 16), **SIZE, **ONE_STEP
    )


def run_flux_fill(transformer: Any) -> None:
    diffusers.FluxFillPipeline(FLOW(), tiny_vae(), None, None, None, None, transformer)(
        image=torch.zeros(1, 3, 64, 64), mask_image=torch.ones(1, 1, 64, 64),
        prompt_embeds=torch.ones(1, 512, 16), pooled_prompt_embeds=torch.ones(1, 16), **SIZE, **ONE_STEP,
    )  # fmt: skip


def run_flux2(transformer: Any) -> None:
    diffusers.Flux2Pipeline(FLOW(), None, None, None, transformer)(
        prompt_embeds=torch.ones(1, 512, 16), **SIZE, **ONE_STEP
    )


def run_flux2_klein(transformer: Any) -> None:
    vae = Part(
        config=SimpleNamespace(block_out_channels=(8,) * 4, batch_norm_eps=1e-5),
        bn=SimpleNamespace(running_mean=torch.zeros(128), running_var=torch.ones(128)),
    )
    diffusers.Flux2KleinPipeline(FLOW(), vae, None, None, transformer)(**texts(512), **SIZE, **ONE_STEP)


def run_chroma(transformer: Any) -> None:
    diffusers.ChromaPipeline(FLOW(), None, None, None, transformer)(
        **texts(512), **masks(512, torch.float32, ATTENTION_MASKS), **SIZE, **ONE_STEP
    )


def run_qwen_image(transformer: Any) -> None:
    diffusers.QwenImagePipeline(FLOW(), None, None, None, transformer)(
        **texts(512), **masks(512, torch.int64, ("prompt_embeds_mask", "negative_prompt_embeds_mask")),
        **SIZE, **ONE_STEP,
    )  # fmt: skip


def run_z_image(transformer: Any) -> None:
    diffusers.ZImagePipeline(FLOW(), None, None, None, transformer)(
        prompt_embeds=[torch.ones(512, 16)], negative_prompt_embeds=[torch.ones(512, 16)], **SIZE, **ONE_STEP
    )


def run_krea2(transformer: Any) -> None:
    embeds = {name: torch.ones(1, 512, 3, 16) for name in ("prompt_embeds", "negative_prompt_embeds")}
    diffusers.Krea2Pipeline(FLOW(), None, None, None, transformer)(
        **embeds, **masks(512, torch.bool, ("prompt_embeds_mask", "negative_prompt_embeds_mask")), **SIZE, **ONE_STEP
    )


def run_sana(transformer: Any) -> None:
    diffusers.SanaPipeline(None, None, None, transformer, diffusers.DPMSolverMultistepScheduler())(
        **texts(300), **masks(300, torch.int64, ATTENTION_MASKS), negative_prompt=None, use_resolution_binning=False,
        **SIZE, **ONE_STEP,
    )  # fmt: skip


def run_lumina2(transformer: Any) -> None:
    diffusers.Lumina2Pipeline(transformer, FLOW(), None, None, None)(
        **texts(256), **masks(256, torch.int64, ATTENTION_MASKS), **SIZE, **ONE_STEP
    )


def run_hunyuan_image(transformer: Any) -> None:
    from diffusers.guiders import ClassifierFreeGuidance

    both = {
        **texts(1000), **texts(128, names=("prompt_embeds_2", "negative_prompt_embeds_2")),
        **masks(1000, torch.int64, ("prompt_embeds_mask", "negative_prompt_embeds_mask")),
        **masks(128, torch.int64, ("prompt_embeds_mask_2", "negative_prompt_embeds_mask_2")),
    }  # fmt: skip
    guider = ClassifierFreeGuidance()
    diffusers.HunyuanImagePipeline(FLOW(), None, None, None, None, None, transformer, guider, guider)(
        **both, **SIZE, **ONE_STEP
    )


def run_pixart(transformer: Any) -> None:
    diffusers.PixArtSigmaPipeline(None, None, tiny_vae(), transformer, diffusers.DPMSolverMultistepScheduler())(
        negative_prompt=None, use_resolution_binning=False, **texts(300), **masks(300, torch.int64, ATTENTION_MASKS),
        **SIZE, **ONE_STEP,
    )  # fmt: skip


def tiny_wan_vae() -> Any:
    return diffusers.AutoencoderKLWan(base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)


def run_wan(transformer: Any) -> None:
    diffusers.WanPipeline(None, None, tiny_wan_vae(), diffusers.UniPCMultistepScheduler(), transformer)(
        **texts(512), num_frames=5, **SIZE, **ONE_STEP
    )


def run_wan_ti2v(transformer: Any) -> None:
    diffusers.WanPipeline(
        None, None, None, diffusers.UniPCMultistepScheduler(), transformer, expand_timesteps=True
    )(**texts(512), num_frames=5, **SIZE, **ONE_STEP)  # fmt: skip


def run_wan_i2v(transformer: Any) -> None:
    diffusers.WanImageToVideoPipeline(
        None, None, tiny_wan_vae(), diffusers.UniPCMultistepScheduler(), None, None, transformer, boundary_ratio=0.9
    )(torch.zeros(1, 3, 64, 64), **texts(512), num_frames=5, **SIZE, **ONE_STEP)  # fmt: skip


def run_hunyuan_video(transformer: Any) -> None:
    diffusers.HunyuanVideoPipeline(None, None, transformer, None, FLOW(), None, None)(
        prompt_embeds=torch.ones(1, 256, 16), pooled_prompt_embeds=torch.ones(1, 16),
        prompt_attention_mask=torch.ones(1, 256, dtype=torch.int64), num_frames=5, **SIZE, **ONE_STEP,
    )  # fmt: skip


def run_hunyuan_video_15(transformer: Any) -> None:
    from diffusers.guiders import ClassifierFreeGuidance

    vae = Part(config=SimpleNamespace(latent_channels=4), temporal_compression_ratio=4, spatial_compression_ratio=16)
    both = {
        **texts(1000), **texts(256, names=("prompt_embeds_2", "negative_prompt_embeds_2")),
        **masks(1000, torch.int64, ("prompt_embeds_mask", "negative_prompt_embeds_mask")),
        **masks(256, torch.int64, ("prompt_embeds_mask_2", "negative_prompt_embeds_mask_2")),
    }  # fmt: skip
    diffusers.HunyuanVideo15Pipeline(
        None, None, transformer, vae, FLOW(), None, None, ClassifierFreeGuidance()
    )(**both, num_frames=5, **SIZE, **ONE_STEP)  # fmt: skip


def run_ltx(transformer: Any) -> None:
    diffusers.LTXPipeline(FLOW(), None, None, None, transformer)(
        **texts(128), **masks(128, torch.bool, ATTENTION_MASKS), num_frames=9, **SIZE, **ONE_STEP
    )


def run_ltx2(transformer: Any) -> None:
    class Connectors(Part):
        def forward(self, embeds: torch.Tensor, mask: torch.Tensor, **_: Any) -> Any:
            return embeds[..., :16], embeds[..., :16], mask

    audio = SimpleNamespace(mel_bins=64, latent_channels=8, sample_rate=16000, mel_hop_length=160)
    audio_vae = Part(
        config=audio, mel_compression_ratio=4, temporal_compression_ratio=4, latents_mean=torch.zeros(128),
        latents_std=torch.ones(128),
    )  # fmt: skip
    vae = Part(
        config=SimpleNamespace(scaling_factor=1.0), spatial_compression_ratio=32, temporal_compression_ratio=8,
        latents_mean=torch.zeros(8), latents_std=torch.ones(8),
    )  # fmt: skip
    diffusers.LTX2Pipeline(FLOW(), vae, audio_vae, None, None, Connectors(), transformer, None)(
        **texts(1024), **masks(1024, torch.int64, ATTENTION_MASKS), num_frames=9, **SIZE, **ONE_STEP,
        use_cross_timestep=True,  # the default from diffusers 0.40
    )  # fmt: skip


def run_cogvideox(transformer: Any) -> None:
    diffusers.CogVideoXPipeline(None, None, None, transformer, diffusers.CogVideoXDPMScheduler())(
        **texts(226), num_frames=9, **SIZE, **ONE_STEP
    )


def run_mochi(transformer: Any) -> None:
    diffusers.MochiPipeline(FLOW(), None, None, None, transformer)(
        **texts(256), **masks(256, torch.bool, ATTENTION_MASKS), num_frames=7, **SIZE,
        num_inference_steps=4, output_type="latent",
    )  # fmt: skip


def run_cosmos(transformer: Any) -> None:
    module = sys.modules[type(transformer).__module__]
    if not hasattr(module, "transforms"):  # of torchvision, which is not among the requirements
        resize = SimpleNamespace(resize=lambda mask, size, **_: nn.functional.interpolate(mask, size))
        vars(module)["transforms"] = SimpleNamespace(functional=resize, InterpolationMode=SimpleNamespace(NEAREST=0))
    vae = Part(
        temperal_downsample=[False, True, True],
        config=SimpleNamespace(latents_mean=[0.0] * 16, latents_std=[1.0] * 16, z_dim=16),
    )  # fmt: skip
    checker = Part()
    diffusers.Cosmos2TextToImagePipeline(None, None, transformer, vae, FLOW(use_karras_sigmas=True), checker)(
        **texts(512), **SIZE, **ONE_STEP
    )


def run_kandinsky5(transformer: Any) -> None:
    both = {
        **texts(512, names=("prompt_embeds_qwen", "negative_prompt_embeds_qwen")),
        "prompt_embeds_clip": torch.ones(1, 16), "negative_prompt_embeds_clip": torch.ones(1, 16),
        "prompt_cu_seqlens": torch.tensor([0, 512]), "negative_prompt_cu_seqlens": torch.tensor([0, 512]),
    }  # fmt: skip
    diffusers.Kandinsky5T2VPipeline(transformer, None, None, None, None, None, FLOW())(
        **both, num_frames=5, **SIZE, **ONE_STEP
    )


def run_stable_audio(transformer: Any) -> None:
    class Projection(Part):
        config = SimpleNamespace(min_value=0.0, max_value=512.0)

        def forward(self, **_: Any) -> Any:
            hidden = torch.ones(1, 1, 16)
            return SimpleNamespace(
                text_hidden_states=torch.ones(2, 128, 16),
                seconds_start_hidden_states=hidden,
                seconds_end_hidden_states=hidden,
            )

    vae = Part(config=SimpleNamespace(audio_channels=2, sampling_rate=64), sampling_rate=64, hop_length=8)
    diffusers.StableAudioPipeline(
        vae, None, Projection(), None, transformer, diffusers.EDMDPMSolverMultistepScheduler()
    )(**texts(128), audio_end_in_s=1.0, **ONE_STEP)  # fmt: skip


VIDEO = {**SIZE, "frames": 5}
RUNS: dict[str, Run] = {
    "sd15": Run(run_sd15),
    "sd-controlnet": Run(run_controlnet, index={"controlnet": ["diffusers", "ControlNetModel"]}),
    "sdxl": Run(run_sdxl),
    "sdxl-refiner": Run(run_sdxl_refiner, index={"requires_aesthetics_score": True}),
    "sdxl-inpaint": Run(run_sdxl_inpaint),
    "svd": Run(run_svd, {**SIZE, "frames": 3}),
    "animatediff": Run(run_animatediff, {**SIZE, "frames": 3}),
    "sd3": Run(run_sd3),
    "flux": Run(run_flux),
    "flux-fill": Run(run_flux_fill, config={"in_channels": 288, "out_channels": 16}),
    "flux2": Run(run_flux2),
    "flux2-klein-4b": Run(run_flux2_klein),
    "chroma": Run(run_chroma),
    "qwen-image": Run(run_qwen_image),
    "z-image": Run(run_z_image),
    "krea2": Run(run_krea2),
    "sana": Run(run_sana),
    "lumina2": Run(run_lumina2),
    "hunyuan-image": Run(run_hunyuan_image),
    "pixart": Run(run_pixart),
    "wan": Run(run_wan, VIDEO),
    "wan22-ti2v-5b": Run(run_wan_ti2v, VIDEO, {"expand_timesteps": True}),
    "wan22-i2v-a14b": Run(run_wan_i2v, VIDEO),
    "hunyuan-video": Run(run_hunyuan_video, VIDEO),
    "hunyuan-video-1.5": Run(run_hunyuan_video_15, VIDEO),
    "ltx-video": Run(run_ltx, {**SIZE, "frames": 9}),
    "ltx2": Run(run_ltx2, {**SIZE, "frames": 9}),
    "cogvideox-5b": Run(run_cogvideox, {**SIZE, "frames": 9}),
    "mochi": Run(run_mochi, {**SIZE, "frames": 7}, steps=4),
    "cosmos-predict2-2b": Run(run_cosmos),
    "kandinsky5-lite": Run(run_kandinsky5, VIDEO),
    "stable-audio": Run(run_stable_audio, {}),
}
