"""How far a denoiser comes, and where it fails."""

from __future__ import annotations

import pytest
import torch

from tools.support.denoisers import DENOISERS
from tools.support.tiny_denoiser import TinyDenoiser, latent, prompt
from tools.support.tries import largest_difference, try_denoiser


def test_a_class_that_is_supported_runs_exactly() -> None:
    found = try_denoiser(DENOISERS["PriorTransformer"])
    assert (found.failed, found.difference) == (None, 0)
    assert found.traces
    assert found.line() == f"{found.nodes} nodes, largest difference 0.0e+00"


@pytest.mark.parametrize(
    ("tiny", "failed", "why"),
    [
        (TinyDenoiser("DiTTransformer2DModel", {"sample_size": "wide"}, {}), "build", "TypeError"),
        (TinyDenoiser("models.activations.GELU", {"dim_in": 2, "dim_out": 2}, {"hidden_states": prompt(1, 2)}),
         "trace", "no tensor argument has the role 'latent'"),
    ],
)  # fmt: skip
def test_where_a_class_fails_is_said_in_one_line(tiny: TinyDenoiser, failed: str, why: str) -> None:
    found = try_denoiser(tiny)
    assert found.failed == failed
    assert not found.traces
    assert found.line().startswith(f"fails to {failed}: ")
    assert why in found.line()


def test_only_the_trace_is_tried() -> None:
    tiny = TinyDenoiser("models.activations.GELU", {"dim_in": 2, "dim_out": 2}, {"hidden_states": latent(1, 2)})
    found = try_denoiser(tiny, only_trace=True)
    assert found.traces
    assert found.difference is None


def test_structures_that_differ_are_infinitely_different() -> None:
    one = torch.ones(2)
    assert largest_difference({"a": [one]}, {"a": [one * 3]}) == 2
    assert largest_difference((one,), (one, one)) == float("inf")
    assert largest_difference(one, torch.ones(3)) == float("inf")
    assert largest_difference({"a": None}, {"a": None}) == 0
    assert largest_difference({"a": None}, {"a": one}) == float("inf")
