"""UNets with as many modules as known ones have, and next to nothing to compute: a host's time is measured by them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_UNETS: dict[str, dict[str, Any]] = {
    "sd15": {
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "block_out_channels": (4, 8, 16, 16),
    },
    "sdxl": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (4, 8, 16),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
    },
}
LAYOUTS = tuple(_UNETS)
SAMPLE, PROMPT = (2, 8, 8), (4, 8)  # of a row


class UNet(nn.Module):
    """A UNet of 4 to 16 channels: (rows, *SAMPLE), a timestep and (rows, *PROMPT) in, (rows, *SAMPLE) out."""

    def __init__(self, layout: str) -> None:
        """layout: whose modules it has: one of LAYOUTS."""
        super().__init__()
        from diffusers import UNet2DConditionModel

        self.unet = UNet2DConditionModel(
            in_channels=SAMPLE[0],
            out_channels=SAMPLE[0],
            cross_attention_dim=PROMPT[1],
            attention_head_dim=4,
            norm_num_groups=4,
            **_UNETS[layout],
        )

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.unet(sample, timestep, prompt, return_dict=False)[0]
        return made
