"""ControlNets, adapters and the pipelines that use them, of the small random pipelines' parts."""

from __future__ import annotations

from typing import Any

import torch


def image(seed: int = 0, side: int = 32) -> torch.Tensor:
    """A random image as pipelines take it: [1, 3, side, side] in 0 to 1."""
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(seed))


def random_weights(module: Any, seed: int = 1) -> Any:
    """The module in evaluation mode; ControlNets begin with zeros where they would do nothing."""
    made = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=made))
    return module.eval()


def controlnet(pipe: Any, seed: int = 1) -> Any:
    """A ControlNet for a pipeline with a UNet."""
    from diffusers import ControlNetModel

    torch.manual_seed(seed)
    made = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 16))
    return random_weights(made, seed)


def with_controlnets(pipe: Any, class_name: str, *controlnets: Any) -> Any:
    """The pipeline of that class with the same parts and these ControlNets."""
    import diffusers

    parts = {key: part for key, part in pipe.components.items() if key != "image_encoder"}
    several = list(controlnets) if len(controlnets) > 1 else controlnets[0]
    made = getattr(diffusers, class_name)(**parts, controlnet=several)
    made.set_progress_bar_config(disable=True)
    return made


def sd3_controlnet(pipe: Any) -> Any:
    """A ControlNet for a StableDiffusion3Pipeline, for one block less than the transformer has."""
    from diffusers import SD3ControlNetModel

    torch.manual_seed(1)
    config = {**pipe.transformer.config, "num_layers": pipe.transformer.config.num_layers - 1}
    return random_weights(SD3ControlNetModel.from_config(config, extra_conditioning_channels=0))


def t2i_adapter_pipeline(pipe: Any) -> Any:
    """StableDiffusionAdapterPipeline with a StableDiffusionPipeline's parts."""
    from diffusers import StableDiffusionAdapterPipeline, T2IAdapter

    torch.manual_seed(1)
    adapter = T2IAdapter(
        in_channels=3, channels=[32, 64], num_res_blocks=1, downscale_factor=2, adapter_type="full_adapter"
    ).eval()
    parts = {key: part for key, part in pipe.components.items() if key != "image_encoder"}
    made = StableDiffusionAdapterPipeline(**parts, adapter=adapter, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


IMAGE_WIDTH = 16  # of the image embeddings that the IP-Adapter takes


def load_ip_adapter(pipe: Any) -> None:
    """Give a StableDiffusionPipeline's UNet an IP-Adapter with random weights."""
    torch.manual_seed(1)
    unet, tokens = pipe.unet, 4
    width = unet.config.cross_attention_dim
    layers: dict[str, torch.Tensor] = {}
    crossed = [name.removesuffix(".processor") for name in unet.attn_processors if "attn2" in name]
    for index, name in enumerate(crossed):
        inner = unet.get_submodule(name).to_q.out_features
        for part in ("to_k_ip", "to_v_ip"):
            layers[f"{2 * index + 1}.{part}.weight"] = 0.1 * torch.randn(inner, width)
    projection = {
        "proj.weight": 0.1 * torch.randn(tokens * width, IMAGE_WIDTH), "proj.bias": torch.zeros(tokens * width),
        "norm.weight": torch.ones(width), "norm.bias": torch.zeros(width),
    }  # fmt: skip
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": layers}])
