"""The pipelines of Stable Diffusion, made small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tools.small_pipelines import vae
from tools.support.parts import clip, denoiser, made, picture, picture_mask, scheduler, vision, words
from tools.support.tiny_denoiser import randomise
from tools.support.tiny_pipeline import tiny_pipeline

_NO_CHECKER: dict[str, Any] = {"safety_checker": None, "feature_extractor": None}
_TEXT: dict[str, Any] = {"prompt": "a red cat"}
_SIZED: dict[str, Any] = {**_TEXT, "height": 32, "width": 32}


def _unet(**changes: Any) -> Any:
    plain = {"addition_embed_type": None, "projection_class_embeddings_input_dim": None, "cross_attention_dim": 32}
    return denoiser("UNet2DConditionModel", **{**plain, **changes})


def _sd(**unet: Any) -> dict[str, Any]:
    return {
        **_NO_CHECKER, "vae": vae(), "text_encoder": clip(), "tokenizer": words(), "unet": _unet(**unet),
        "scheduler": scheduler("DDIM", beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
    }  # fmt: skip


def controlnet(unet: Any, cls: str = "ControlNetModel") -> Any:
    """A ControlNet beside a UNet; its outputs are not zero."""
    import diffusers

    beside = getattr(diffusers, cls).from_unet(unet, conditioning_embedding_out_channels=(8, 16)).eval()
    randomise(beside)
    return beside


def _with_controlnet() -> dict[str, Any]:
    parts = _sd()
    return {**parts, "controlnet": controlnet(parts["unet"])}


def _xs() -> dict[str, Any]:
    from diffusers import ControlNetXSAdapter

    parts = _sd(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
    )
    beside = ControlNetXSAdapter.from_unet(
        parts["unet"], size_ratio=0.5, conditioning_embedding_out_channels=(8, 16), num_attention_heads=2
    )
    randomise(beside)
    return {**parts, "controlnet": beside}


def _panorama() -> dict[str, Any]:
    """With attention to half of a view's sides only: views are of 64 x 64, whatever the autoencoder makes of pixels."""
    return _sd(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D")
    )


def _lcm() -> dict[str, Any]:
    return {**_sd(time_cond_proj_dim=32), "scheduler": scheduler("LCM", beta_schedule="scaled_linear")}


def _upscale() -> dict[str, Any]:
    parts = _sd(in_channels=7, num_class_embeds=1000)
    return {**parts, "low_res_scheduler": scheduler("DDPM", clip_sample=False)}


def adapter() -> Any:
    """A T2I-Adapter, of two blocks."""
    return made("T2IAdapter", channels=[32, 64], num_res_blocks=1, downscale_factor=2, adapter_type="full_adapter")


def _variation() -> dict[str, Any]:
    parts = {name: part for name, part in _sd().items() if name not in ("text_encoder", "tokenizer")}
    return {**parts, **vision()}


def _unchecked(**unet: Any) -> dict[str, Any]:
    """The parts of pipelines that never had a safety checker; a scheduler among the arguments is one of them."""
    sampler = {"scheduler": unet.pop("scheduler")} if "scheduler" in unet else {}
    return {name: part for name, part in {**_sd(**unet), **sampler}.items() if name not in _NO_CHECKER}


def _marigold(**config: Any) -> Callable[[], dict[str, Any]]:
    def parts() -> dict[str, Any]:
        return {
            **_unchecked(in_channels=8),
            "default_denoising_steps": 4,
            "default_processing_resolution": 32,
            **config,
        }

    return parts


_IMAGE: dict[str, Any] = {**_TEXT, "image": picture, "strength": 0.9}
_INPAINT: dict[str, Any] = {**_SIZED, "image": picture, "mask_image": picture_mask}
_CONTROL: dict[str, Any] = {**_IMAGE, "control_image": picture}

UNET_PIPELINES = [
    tiny_pipeline("StableDiffusionPipeline", _sd, **_SIZED),
    tiny_pipeline("StableDiffusionImg2ImgPipeline", _sd, **_IMAGE),
    tiny_pipeline("StableDiffusionInpaintPipeline", lambda: _sd(in_channels=9), **_INPAINT),
    tiny_pipeline(
        "StableDiffusionInstructPix2PixPipeline", lambda: _sd(in_channels=8), **_TEXT, image=picture,
        image_guidance_scale=1.5,
    ),
    tiny_pipeline("StableDiffusionUpscalePipeline", _upscale, **_TEXT, image=picture, noise_level=20),
    tiny_pipeline(
        "StableDiffusionLatentUpscalePipeline",
        lambda: _unchecked(
            in_channels=8, out_channels=5, time_cond_proj_dim=160,
            scheduler=scheduler("EulerDiscrete", beta_schedule="scaled_linear"),
        ),
        **_TEXT, image=picture,
    ),
    tiny_pipeline("StableDiffusionImageVariationPipeline", _variation, image=picture, height=32, width=32),
    tiny_pipeline("StableDiffusionPAGPipeline", _sd, **_SIZED, pag_scale=2.0),
    tiny_pipeline("StableDiffusionPAGImg2ImgPipeline", _sd, **_IMAGE, pag_scale=2.0),
    tiny_pipeline("StableDiffusionPAGInpaintPipeline", lambda: _sd(in_channels=9), **_INPAINT, pag_scale=2.0),
    tiny_pipeline("StableDiffusionControlNetPipeline", _with_controlnet, **_SIZED, image=picture),
    tiny_pipeline("StableDiffusionControlNetImg2ImgPipeline", _with_controlnet, **_CONTROL),
    tiny_pipeline("StableDiffusionControlNetInpaintPipeline", _with_controlnet, **_INPAINT, control_image=picture),
    tiny_pipeline("StableDiffusionControlNetPAGPipeline", _with_controlnet, **_SIZED, image=picture, pag_scale=2.0),
    tiny_pipeline(
        "StableDiffusionControlNetPAGInpaintPipeline", _with_controlnet, **_INPAINT, control_image=picture,
        pag_scale=2.0,
    ),
    tiny_pipeline("StableDiffusionControlNetXSPipeline", _xs, **_SIZED, image=picture),
    tiny_pipeline("StableDiffusionAdapterPipeline", lambda: {**_sd(), "adapter": adapter()}, **_SIZED, image=picture),
    tiny_pipeline("StableDiffusionPanoramaPipeline", _panorama, **_TEXT, height=512, width=576),  # two views
    tiny_pipeline("StableDiffusionSAGPipeline", _sd, **_SIZED),
    tiny_pipeline(
        "StableDiffusionLDM3DPipeline",
        lambda: {**_sd(), "image_encoder": None, "vae": vae(in_channels=6, out_channels=6)}, "np", **_SIZED,
    ),
    tiny_pipeline("SemanticStableDiffusionPipeline", _sd, **_SIZED),
    tiny_pipeline("LatentConsistencyModelPipeline", _lcm, **_SIZED),
    tiny_pipeline("LatentConsistencyModelImg2ImgPipeline", _lcm, **_IMAGE),
    tiny_pipeline("MarigoldDepthPipeline", _marigold(prediction_type="depth"), "np", image=picture),
    tiny_pipeline("MarigoldNormalsPipeline", _marigold(prediction_type="normals"), "np", image=picture),
]  # fmt: skip
