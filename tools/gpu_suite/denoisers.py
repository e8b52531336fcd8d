"""The denoisers that the suite measures, with random parameters, and their traced graphs.

Traced graphs are kept in the suite's folder, so that each denoiser is traced once.
"""

from __future__ import annotations

import gzip
import hashlib
import pickle
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from partitioner.graph import ir, nesting
from partitioner.graph.export import trace
from partitioner.graph.ir import TracedGraph
from partitioner.models.find_spec import model_spec
from partitioner.models.spec import trace_model
from profiles.json_files import write_atomic
from tools.gpu_suite.parts import SMALL, TINY

CallInputs = dict[str, Any]


@dataclass(frozen=True)
class DenoiserGraphs:
    """Traced graphs of a denoiser.

    Attributes:
        whole: of a full call.
        half: of a call with one half of the guidance batch; None where the denoiser has no guidance batch.
    """

    whole: TracedGraph
    half: TracedGraph | None


class SmallDenoiser(nn.Module):
    """Six residual blocks of width 64, modulated by the timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Linear(1, 64)
        self.blocks = nn.ModuleList(nn.Linear(64, 64) for _ in range(6))

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
        time_ = nn.functional.silu(self.time(timestep.reshape(1, 1) / 1000))
        for block in self.blocks:
            sample = sample + nn.functional.gelu(block(sample + time_))
        return (sample,)


def _tiny_sdxl() -> nn.Module:
    """A UNet of SDXL's operators, all some hundred times smaller."""
    from diffusers import UNet2DConditionModel

    unet: nn.Module = UNet2DConditionModel(
        sample_size=16, block_out_channels=(32, 64, 128), layers_per_block=2, norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10), attention_head_dim=(2, 4, 8), cross_attention_dim=64,
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=64,
    )  # fmt: skip
    return unet.eval()


def _tiny_sdxl_inputs() -> CallInputs:
    more = {"text_embeds": torch.zeros(2, 16), "time_ids": torch.zeros(2, 6)}
    return {
        "sample": torch.zeros(2, 4, 16, 16),
        "timestep": torch.zeros(()),
        "encoder_hidden_states": torch.zeros(2, 77, 64),
        "added_cond_kwargs": more,
        "return_dict": False,
    }


def denoiser(name: str) -> tuple[Callable[[], nn.Module], CallInputs, Mapping[str, Any]]:
    """(a function that builds it with random weights, the arguments of a call, their roles)."""
    if name == SMALL:
        inputs = {"sample": torch.zeros(2, 256, 64), "timestep": torch.zeros(())}
        return lambda: SmallDenoiser().eval(), inputs, {"sample": "latent", "timestep": "timestep"}
    spec = model_spec("sdxl" if name == TINY["sdxl"] else name)
    if name == TINY["sdxl"]:
        return _tiny_sdxl, _tiny_sdxl_inputs(), spec.roles
    return spec.build, spec.example_inputs(), spec.roles


def graphs_of(name: str, folder: Path) -> DenoiserGraphs:
    """The traced graphs, read from the folder if they are there, else traced and written to it."""
    kept = folder / f"{name}.graphs.pickle.gz"  # of this tool's own making; it loads no others
    if kept.exists():
        form, pickled = pickle.loads(gzip.decompress(kept.read_bytes()))
        if form == _form():
            graphs: DenoiserGraphs = pickle.loads(pickled)
            return graphs
        made = f"{kept} was made by {form.rpartition(' ')[2]}, of these or other sources"
        print(f"{made}; tracing {name} again, by torch-{torch.__version__}", file=sys.stderr)
    if name == SMALL or name in TINY.values():
        build, inputs, roles = denoiser(name)
        graphs = DenoiserGraphs(trace(build(), inputs, roles, model=name), None)
    else:
        spec = model_spec(name)
        half = trace_model(spec, rows=spec.step.rows // 2) if spec.guidance_style == "batch" else None
        graphs = DenoiserGraphs(trace_model(spec), half)
    write_atomic(kept, gzip.compress(pickle.dumps((_form(), pickle.dumps(graphs))), mtime=0), overwrite=True)
    return graphs


def _form() -> str:
    """A digest of the sources that say what a kept graph consists of, and the release of torch that has traced it."""
    sources = b"".join(Path(module.__file__ or "").read_bytes() for module in (ir, nesting))
    return f"{hashlib.sha256(sources).hexdigest()} torch-{'.'.join(torch.__version__.split('.')[:2])}"
