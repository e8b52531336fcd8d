"""A LoRA that is added to a denoiser is honoured."""

from __future__ import annotations

import pytest
import torch

from tools.support.adapters import add_lora, try_lora
from tools.support.denoisers import DENOISERS
from tools.support.tiny_denoiser import TinyDenoiser, latent

pytest.importorskip("peft")


@pytest.mark.slow
def test_a_lora_is_honoured() -> None:
    assert try_lora(DENOISERS["PriorTransformer"]) == "exact"


def test_a_class_that_takes_none_says_so() -> None:
    tiny = TinyDenoiser("models.activations.GELU", {"dim_in": 2, "dim_out": 2}, {"hidden_states": latent(1, 2)})
    assert try_lora(tiny) == "none"


def test_a_lora_changes_what_a_denoiser_predicts() -> None:
    module, inputs, _ = DENOISERS["PriorTransformer"].make()
    with torch.no_grad():
        before = module(**inputs)[0]
        add_lora(module)
        assert not torch.equal(module(**inputs)[0], before)
