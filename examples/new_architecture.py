"""A new architecture: one decorated function says how a denoiser is called, and its name can be planned.

python examples/new_architecture.py
"""

from __future__ import annotations

import torch
from torch import nn

from partitioner.costs.model import CostModel
from partitioner.models import Inputs, Request, latent, model_spec, prompt, register_model, timestep
from partitioner.planning.planner import plan
from partitioner.planning.request import PlanRequest
from partitioner.planning.sources import FromSpec


class TinyDiT(nn.Module):
    """x: [rows, tokens, 128] latent tokens; t: scalar; context: [rows, 16, 128] text tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(128, 4, 512, dropout=0.0, batch_first=True) for _ in range(6)
        )
        self.out = nn.Linear(128, 128)

    def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor]:
        hidden = x * (1 + torch.sin(t.to(x.dtype) / 1000))
        for layer in self.layers:
            hidden = layer(hidden, context)
        return (self.out(hidden),)


@register_model("tiny-dit", build=TinyDiT, dtype="float32")
def tiny_dit(request: Request) -> Inputs:
    """The arguments of one call: 8 x 8 pixels of the image are one token."""
    height, width = request.pixels((128, 128), 8)
    tokens = (height // 8) * (width // 8)
    return {
        "x": latent(request.rows, tokens, 128),
        "t": timestep(),
        "context": prompt(request.rows, 16, 128),
    }


def main() -> None:
    spec = model_spec("tiny-dit", height=256, width=256)
    made = plan(PlanRequest(FromSpec(spec), 4, CostModel("cpu"))).plan
    print(f"{made.origin}: {made.branches} branches x {made.components} components, {made.mode}")
    print(f"predicted {made.predicted.step_ms:.1f} ms per step, one device {made.predicted.sequential_ms:.1f} ms")


if __name__ == "__main__":
    main()
