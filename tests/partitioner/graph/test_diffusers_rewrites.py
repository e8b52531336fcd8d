"""Rewrites of diffusers' functions: each is in force, and computes what the library's own function does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from partitioner.graph.diffusers_rewrites import DIFFUSERS_REWRITES
from partitioner.graph.rewrites import rewritten
from tests.partitioner.graph.test_rewrites import found
from tools.support.denoisers import DENOISERS
from tools.support.tries import largest_difference

# Rewritten class -> arguments that are masks, of which some of the last, or of any, are off in the second call.
MASKS = {
    "GlmImageTransformer2DModel": ["prior_token_drop"],
    "OmniGenTransformer2DModel": [],
    "HunyuanImageTransformer2DModel": ["encoder_attention_mask", "encoder_attention_mask_2"],
    "HunyuanVideo15Transformer3DModel": ["encoder_attention_mask", "encoder_attention_mask_2"],
    "HiDreamImageTransformer2DModel": [],
    "Lumina2Transformer2DModel": ["encoder_attention_mask"],
    "HunyuanVideoFramepackTransformer3DModel": ["encoder_attention_mask"],
    "MochiTransformer3DModel": ["encoder_attention_mask"],
}
IN_LAST_BITS = {"HiDreamImage", "Lumina2", "HunyuanVideoFramepack", "Mochi"}
ANYWHERE = {"GlmImage", "HunyuanImage", "HunyuanVideo15"}  # may masks have holes


def calls(name: str) -> Any:
    """The module, and the arguments of calls."""
    module, inputs, _ = DENOISERS[name].make()
    masked = dict(inputs)
    for path in MASKS[name]:
        mask = torch.ones_like(inputs[path])
        mask[..., -2:] = 0
        if name.partition("Transformer")[0] in ANYWHERE:
            mask[..., 0] = 0
        masked[path] = mask
    return module, [inputs, masked]


@pytest.mark.filterwarnings("ignore")  # what diffusers warns of
@pytest.mark.parametrize("name", MASKS)
def test_what_is_rewritten_computes_the_same(name: str) -> None:
    module, arguments = calls(name)
    if name.startswith("HunyuanVideo15"):
        arguments.append({**arguments[1], "image_embeds": torch.zeros_like(arguments[1]["image_embeds"])})
    for inputs in arguments:
        with torch.no_grad():
            wanted = module(**inputs)
            with rewritten():
                given = module(**inputs)
        difference = largest_difference(wanted, given)
        assert difference <= (1e-4 if name.partition("Transformer")[0] in IN_LAST_BITS else 0), difference


def test_every_rewrite_is_of_a_function_of_this_diffusers() -> None:
    for name in MASKS:
        DENOISERS[name].cls()
    for function in DIFFUSERS_REWRITES:
        before = found(function)
        with rewritten():
            assert found(function) is not before, function
        assert found(function) is before
