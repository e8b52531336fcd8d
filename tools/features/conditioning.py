"""IP-Adapter, T2I-Adapter, ControlNet, image to image: features that give the denoiser more to read."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from torch import nn

from tools.features.feature import Feature, Step, both, inside
from tools.features.subject import NotApplicable, Subject

_EMBEDDING = 24  # width of an image's embedding
_UNETS = ("StableDiffusion", "StableDiffusionXL", "AnimateDiff")


def picture(seed: int = 0) -> Any:
    """A random picture of 32 x 32."""
    from PIL import Image

    return Image.fromarray(np.random.RandomState(seed).randint(0, 255, (32, 32, 3), dtype=np.uint8))


def with_components(subject: Subject, class_name: str, **more: Any) -> Any:
    """Another pipeline of the same parts, as diffusers recommends.

    Raises:
        NotApplicable: diffusers has no such class.
    """
    import diffusers

    if not hasattr(diffusers, class_name):
        raise NotApplicable(f"diffusers has no {class_name}")
    cls = getattr(diffusers, class_name)
    taken = inspect.signature(cls.__init__).parameters
    made = cls(**{name: part for name, part in {**subject.pipe.components, **more}.items() if name in taken})
    made.set_progress_bar_config(disable=True)
    return made


def _random(module: nn.Module, seed: int = 3) -> Any:
    """Give a module weights that matter, also those that begin as zeros."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def _ip_adapter(subject: Subject) -> None:
    subject.only("not tried: its adapter needs an encoder of its own", *_UNETS)
    unet = subject.denoiser
    width = unet.config.cross_attention_dim
    generator = torch.Generator().manual_seed(4)
    keys: dict[str, torch.Tensor] = {}
    number = 1
    for name in unet.attn_processors:
        if name.endswith("attn2.processor") and "motion_modules" not in name:
            inner = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            for which in ("k", "v"):
                keys[f"{number}.to_{which}_ip.weight"] = torch.randn(inner, width, generator=generator)
            number += 2
    projection = {
        "proj.weight": torch.randn(4 * width, _EMBEDDING, generator=generator),
        "proj.bias": torch.zeros(4 * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    state = {"image_proj": projection, "ip_adapter": keys}
    subject.pipe.load_ip_adapter(state, subfolder="", weight_name="", image_encoder_folder=None)


def _ip_adapter_scale(subject: Subject) -> None:
    subject.only("not tried: its adapter needs an encoder of its own", *_UNETS)
    subject.pipe.set_ip_adapter_scale(0.3)


def _image_embeds(subject: Subject) -> dict[str, Any]:
    if getattr(subject.denoiser, "encoder_hid_proj", None) is None:
        return {}
    embeds = torch.randn(2, 1, _EMBEDDING, generator=torch.Generator().manual_seed(5))
    return {"ip_adapter_image_embeds": [embeds]}


def _controlnet(count: int) -> Any:
    def change(subject: Subject) -> Any:
        import diffusers

        denoiser, name = subject.denoiser, subject.name
        nets: list[Any] = []
        for seed in range(count):
            torch.manual_seed(seed)
            if name in ("StableDiffusion", "StableDiffusionXL"):
                net = diffusers.ControlNetModel.from_unet(denoiser, conditioning_embedding_out_channels=(16, 32))
            elif name == "AnimateDiff":
                net = diffusers.ControlNetModel(
                    block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8, cross_attention_dim=32,
                    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), attention_head_dim=4,
                    conditioning_embedding_out_channels=(16, 32),
                )  # fmt: skip
            elif name == "StableDiffusion3":
                net = diffusers.SD3ControlNetModel.from_transformer(
                    denoiser, num_layers=1, num_extra_conditioning_channels=0
                )
            else:
                config = {**denoiser.config, "num_layers": 1, "num_single_layers": 1}
                net = diffusers.FluxControlNetModel.from_config(config)
            nets.append(_random(net, seed))
        net = nets[0] if count == 1 else nets
        if count > 1 and name == "StableDiffusion3":
            net = diffusers.SD3MultiControlNetModel(nets)
        return with_components(subject, f"{name}ControlNetPipeline", controlnet=net)

    return change


def _control_options(count: int) -> Any:
    def options(subject: Subject) -> dict[str, Any]:
        pictures = [picture(seed) for seed in range(count)]
        if subject.name == "AnimateDiff":
            frames = [[image] * 2 for image in pictures]
            return {"conditioning_frames": frames[0] if count == 1 else frames, "num_frames": 2}
        name = "image" if subject.name in ("StableDiffusion", "StableDiffusionXL") else "control_image"
        options: dict[str, Any] = {name: pictures[0] if count == 1 else pictures}
        if subject.name in ("StableDiffusion3", "Flux"):
            options |= {"max_sequence_length": 16, "height": 32, "width": 32}
        if count > 1:
            options["controlnet_conditioning_scale"] = [0.5, 0.8]
        return options

    return options


def _t2i_adapter(subject: Subject) -> Any:
    from diffusers import T2IAdapter

    names = {
        "StableDiffusion": "StableDiffusionAdapterPipeline", "StableDiffusionXL": "StableDiffusionXLAdapterPipeline"
    }  # fmt: skip
    subject.only("diffusers has no T2I-Adapter pipeline for it", *names)
    adapter = T2IAdapter(channels=[32, 64], num_res_blocks=1, downscale_factor=2, adapter_type="full_adapter")
    return with_components(subject, names[subject.name], adapter=_random(adapter))


def _image_to_image(subject: Subject) -> Any:
    name = {"AnimateDiff": "AnimateDiffVideoToVideoPipeline"}.get(subject.name, f"{subject.name}Img2ImgPipeline")
    return with_components(subject, name)


def _image_options(subject: Subject) -> dict[str, Any]:
    options: dict[str, Any] = {"steps": 5, "strength": 0.7}
    if subject.name == "AnimateDiff":
        return {**options, "video": [picture(0), picture(1)]}
    if subject.name in ("StableDiffusion3", "Flux"):
        options |= {"max_sequence_length": 16, "height": 32, "width": 32}
    return {**options, "image": picture()}


def _inpaint_options(subject: Subject) -> dict[str, Any]:
    from PIL import Image

    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[8:24] = 255
    return {**_image_options(subject), "mask_image": Image.fromarray(mask), "height": 32, "width": 32}


def _control(count: int, name: str) -> list[Feature]:
    change, options = _controlnet(count), _control_options(count)
    return [
        Feature((Step(f"{name}, before", change, options=options),), before=True),
        inside(Step(f"{name}, inside", change, options=options)),
    ]


FEATURES: list[Feature] = [
    Feature((Step("IP-Adapter, before", _ip_adapter, options=_image_embeds),), before=True),
    inside(
        Step("IP-Adapter, inside", _ip_adapter, options=_image_embeds),
        Step("IP-Adapter: scale, inside", _ip_adapter_scale, options=_image_embeds),
        Step("IP-Adapter: unload, inside", lambda s: s.pipe.unload_ip_adapter(), shows=False),
    ),
    *_control(1, "ControlNet"),
    *_control(2, "two ControlNets"),
    Feature((Step("T2I-Adapter, before", _t2i_adapter, options=lambda _: {"image": picture()}),), before=True),
    inside(
        Step("T2I-Adapter, inside", _t2i_adapter, options=lambda _: {"image": picture()}),
        Step("image to image from the same parts", _image_to_image, options=_image_options),
        Step(
            "inpainting from the same parts",
            lambda s: with_components(s, f"{s.name}InpaintPipeline"),
            options=_inpaint_options,
        ),
    ),
    *both("PAG", lambda s: _pag(s), pag_scale=3.0),
]


def _pag(subject: Subject) -> Any:
    layers = {"StableDiffusion3": ["blocks.1"]}.get(subject.name, ["mid"])
    name = f"{subject.name}PAGPipeline"
    return with_components(subject, name, pag_applied_layers=layers)
