"""Rewrites of diffusers' functions: each is in force, and computes what the library's own function does."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from partitioner.graph.diffusers_rewrites import DIFFUSERS_REWRITES
from partitioner.graph.export import trace
from partitioner.graph.rewrites import rewritten
from partitioner.models.find_spec import model_spec
from tests.partitioner.graph.test_rewrites import found
from tests.support.small_models import small_denoiser
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
# what of torchvision is called, as it is there
TORCHVISION = SimpleNamespace(
    functional=SimpleNamespace(
        resize=lambda mask, size, interpolation: (
            mask if list(mask.shape[-2:]) == size else functional.interpolate(mask.float(), size).to(mask.dtype)
        )
    ),
    InterpolationMode=SimpleNamespace(NEAREST="nearest"),
)


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


def test_cosmos_needs_no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    module = small_denoiser("cosmos-predict2-2b")
    spec = replace(model_spec("cosmos-predict2-2b", height=64, width=64, dtype="float32"), make=lambda: module)
    inputs = {**spec.example_inputs(), "encoder_hidden_states": torch.ones(1, 4, 16)}
    inputs["padding_mask"][..., 8:] = 1
    monkeypatch.setattr(sys.modules[type(module).__module__], "transforms", TORCHVISION, raising=False)
    with torch.no_grad():
        (wanted,) = module(**inputs)
        monkeypatch.undo()
        with rewritten():
            (given,) = module(**inputs)
    assert torch.equal(wanted, given)
    assert trace(module, inputs, spec.roles).latent_nodes


def test_every_rewrite_is_of_a_function_of_this_diffusers() -> None:
    for name in (*MASKS, "CosmosTransformer3DModel"):
        DENOISERS[name].cls()
    for function in DIFFUSERS_REWRITES:
        before = found(function)
        with rewritten():
            assert found(function) is not before, function
        assert found(function) is before
