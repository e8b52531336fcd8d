"""Every model of diffusers is a denoiser that is described, or none, and says why."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import diffusers
import pytest
import torch

from tools.support.denoisers import DENOISERS, NOT_DENOISERS


def models() -> Iterator[str]:
    """The classes of diffusers' transformers and UNets, read from their sources."""
    for part in ("transformers", "unets"):
        for path in (Path(diffusers.__file__).parent / "models" / part).glob("*.py"):
            for name, bases in re.findall(r"^class (\w+)\(([^)]*)\):", path.read_text(encoding="utf-8"), re.MULTILINE):
                if "ModelMixin" in bases:
                    yield name


def test_every_transformer_and_unet_of_diffusers_is_here() -> None:
    listed = DENOISERS.keys() | NOT_DENOISERS.keys()
    missing = set(models()) - listed
    assert not missing, f"describe a call of {', '.join(sorted(missing))}, or add it to NOT_DENOISERS"
    assert not DENOISERS.keys() & NOT_DENOISERS.keys()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what diffusers warns of
def test_each_makes_a_prediction_that_is_not_zero() -> None:
    failed = {}
    for name, tiny in DENOISERS.items():
        module, inputs, roles = tiny.make()
        with torch.no_grad():
            result = module(**inputs)
        tensor = result
        while not isinstance(tensor, torch.Tensor):
            tensor = tensor[0]
        if not tensor.isfinite().all() or not tensor.any():
            failed[name] = "zero, or not finite"
        elif "latent" not in roles.values():
            failed[name] = "no latent"
    assert failed == {}
