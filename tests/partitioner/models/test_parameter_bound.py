"""bounded_parameters: a module of absurd size ends where it would have one parameter, or byte, too many."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from partitioner.errors import UsageError
from partitioner.graph.export import fake_mode
from partitioner.models.build import build_denoiser
from partitioner.models.parameter_bound import bounded_parameters


def test_modules_within_the_bounds_are_built() -> None:
    with bounded_parameters("the test", most=4, most_bytes=4 * (2 * 12 + 2 * 3)):
        made = [nn.Linear(4, 3), nn.Linear(4, 3)]
    assert sum(len(list(module.parameters())) for module in made) == 4


def test_too_many_parameters_are_refused_and_later_ones_are_not_counted() -> None:
    with pytest.raises(UsageError, match="the test asks for more than 5 parameters"), bounded_parameters("the test", 5):
        [nn.Linear(1, 1) for _ in range(10**9)]
    nn.Sequential(*(nn.Linear(1, 1) for _ in range(10)))


@pytest.mark.parametrize("device", ["meta", "fake"])
def test_too_many_bytes_are_refused_by_arithmetic_alone(device: str) -> None:
    place = torch.device("meta") if device == "meta" else fake_mode()
    bounded = bounded_parameters("the test", 10, most_bytes=10**9)
    with pytest.raises(UsageError, match=r"more than 40000.0 GB of parameters"), bounded, place:
        nn.Linear(10**7, 10**6)


def test_other_threads_are_not_counted() -> None:
    made: list[nn.Module] = []
    thread = threading.Thread(target=lambda: made.extend(nn.Linear(1, 1) for _ in range(5)))
    with bounded_parameters("the test", 2):
        thread.start()
        thread.join()
    assert len(made) == 5


@pytest.mark.slow
def test_a_denoiser_of_a_hundred_thousand_layers_is_refused_in_seconds() -> None:
    with (
        pytest.raises(UsageError, match="this configuration asks for more than 8192 parameters"),
        fake_mode(),
    ):
        build_denoiser("SD3Transformer2DModel", {"num_layers": 100_000, "sample_size": 16})


def test_a_denoiser_that_cannot_be_built_is_refused_with_the_cause() -> None:
    expected = r"a FluxTransformer2DModel of this configuration cannot be built: TypeError: "
    with pytest.raises(UsageError, match=expected), fake_mode():
        build_denoiser("FluxTransformer2DModel", {"num_layers": "x"})
