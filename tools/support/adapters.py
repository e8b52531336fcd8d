"""try_lora: whether a denoiser to which a LoRA was added still runs exactly."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tools.support.tiny_denoiser import TinyDenoiser
from tools.support.tries import first_line, largest_difference, run_exactly

_ATTENTION = ("to_q", "to_k", "to_v", "q", "k", "v", "q_proj", "v_proj", "wq", "wv", "qkv")


def try_lora(tiny: TinyDenoiser) -> str:
    """Say "exact" where an added LoRA is honoured; "none" where the class takes none; else what was said."""
    module, inputs, roles = tiny.make()
    if not hasattr(module, "add_adapter"):
        return "none"
    try:
        with torch.no_grad():
            plain = module(**inputs)
        add_lora(module)
        wanted, difference = run_exactly(module, inputs, roles, tiny.name)
    except Exception as error:
        return first_line(error)
    if not largest_difference(plain, wanted):
        return "the LoRA changes nothing"
    return "exact" if difference <= 1e-4 else f"differs by {difference:.1e}"


def add_lora(module: Any) -> None:
    """Add a LoRA of random weights to a denoiser's attention, or to all linear layers where none has a usual name."""
    from peft import LoraConfig

    linear = {name.rpartition(".")[2] for name, child in module.named_modules() if isinstance(child, nn.Linear)}
    targets = sorted(linear.intersection(_ATTENTION)) or sorted(linear - {"0", "1", "2"})
    module.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
