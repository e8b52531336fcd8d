"""The layouts: UNets of known models' modules that any machine can call."""

from __future__ import annotations

import pytest
import torch

from tools.measure.layouts import LAYOUTS, PROMPT, SAMPLE, UNet


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "parameters"), [("sd15", 686), ("sdxl", 1676)])
def test_it_has_as_many_parameters_as_the_model(layout: str, parameters: int) -> None:
    unet = UNet(layout)
    assert len(list(unet.parameters())) == parameters
    with torch.no_grad():
        made = unet(torch.zeros(2, *SAMPLE), torch.tensor(1), torch.zeros(2, *PROMPT))
    assert made.shape == (2, *SAMPLE)
    assert layout in LAYOUTS
