"""Arguments of a call as data."""

from __future__ import annotations

import torch

from partitioner.graph.nodes import Role
from tools.support.denoisers import DENOISERS
from tools.support.tiny_denoiser import (
    CallTensor,
    TinyDenoiser,
    constant,
    given,
    grid,
    latent,
    mask,
    prompt,
    timestep,
)


def values(argument: CallTensor) -> torch.Tensor:
    return argument.tensor(torch.Generator().manual_seed(0))


def test_arguments_have_roles_and_values() -> None:
    assert values(latent(2, 3)).shape == (2, 3)
    assert values(prompt(2, 3)).std() > 0
    assert values(timestep(2)).tolist() == [500, 500]
    assert values(timestep(value=3, dtype="int64")).dtype == torch.int64
    assert values(constant(2, 1, 2)).tolist() == [[2, 2]]
    assert values(mask(1, 2)).tolist() == [[True, True]]
    assert values(given([[1, 2]], "int64")).tolist() == [[1, 2]]
    assert values(grid(1, 2, start=(5, 6))).tolist() == [[5, 6], [5, 7]]
    assert {latent().role, prompt().role, timestep().role} <= {role.name.lower() for role in Role}


def test_a_seed_makes_the_same_denoiser_and_call() -> None:
    one, two = (DENOISERS["PriorTransformer"].make() for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one[0].parameters(), two[0].parameters(), strict=True))
    assert torch.equal(one[1]["hidden_states"], two[1]["hidden_states"])
    assert not torch.equal(one[1]["hidden_states"], DENOISERS["PriorTransformer"].make(1)[1]["hidden_states"])
    assert one[1]["return_dict"] is False
    assert one[2]["attention_mask"] == "prompt"


def test_zeros_of_a_constructor_are_filled_and_objects_made() -> None:
    tiny = TinyDenoiser(
        "models.activations.GELU", {"dim_in": 2, "dim_out": 2}, {"hidden_states": [latent(1, 2)], "other": dict}
    )
    _, inputs, roles = tiny.make()
    assert inputs["other"] == {}
    assert roles == {"hidden_states.0": "latent"}
    assert tiny.name == "GELU"
    module, _, _ = DENOISERS["DiTTransformer2DModel"].make()
    assert all(parameter.any() for parameter in module.parameters())
