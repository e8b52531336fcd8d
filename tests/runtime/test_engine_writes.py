"""Writes to a denoiser's parameters while an engine runs it reach the ranks that have them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn
from torch.nn.utils import prune

from runtime.engine import Engine
from runtime.errors import InputError
from runtime.options import EngineOptions
from tests.support.engines import Trajectory, equal, toy, toy_plan


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda d: d.to("meta"), r"time\.weight .* of this ToyDenoiser have no values .*: it was moved there, or"),
        (
            lambda d: setattr(d.down[1].read, "weight", nn.Parameter(torch.eye(8).to_sparse())),
            r"parameter down\.1\.read\.weight has the layout sparse_coo",
        ),
        (lambda d: prune.l1_unstructured(d.down[1].read, "weight", 0.4), r"changes attribute weight of module down\.1"),
    ],
    ids=["moved to meta", "sparse", "pruned"],
)
def test_weights_that_ranks_cannot_hold_are_refused(change: Callable[[Any], object], expected: str) -> None:
    denoiser, trajectory = toy(), Trajectory(calls=2)
    state = {path: tensor.clone() for path, tensor in denoiser.state_dict().items()}
    with Engine(denoiser, toy_plan(denoiser, 2), EngineOptions(transport="emulation", exact=True)) as engine:
        before = trajectory.through(engine)
        change(denoiser)
        with pytest.raises(InputError, match=expected):
            trajectory.through(engine)
        if hasattr(denoiser.down[1].read, "weight_orig"):
            prune.remove(denoiser.down[1].read, "weight")
        for path in state if denoiser.time.weight.is_meta else ["down.1.read.weight"]:
            parent, _, name = path.rpartition(".")
            setattr(denoiser.get_submodule(parent), name, nn.Parameter(state[path]))
        assert equal(trajectory.through(engine), before)


def optimize(optimizer: type[torch.optim.Optimizer], denoiser: Any, **options: Any) -> None:
    for parameter in denoiser.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer(denoiser.parameters(), lr=0.1, **options).step()
    for parameter in denoiser.parameters():
        parameter.grad = None


def average(denoiser: Any) -> None:
    average = EMAModel(denoiser.parameters())
    average.shadow_params = [parameter * 1.2 for parameter in average.shadow_params]
    average.copy_to(denoiser.parameters())


def exchanged(one: Any, other: Any) -> None:
    one.weight, other.weight = other.weight, one.weight


def without_gradients(write: Callable[[nn.Parameter], object]) -> Callable[[Any], None]:
    """A write to a parameter that another rank than the driver's computes with."""

    def change(denoiser: Any) -> None:
        with torch.no_grad():
            write(denoiser.down[1].read.weight)

    return change


# every way of writing to parameters, and whether torch counts it as a write
WRITES: dict[str, tuple[Callable[[Any], object], bool]] = {
    "in place": (without_gradients(lambda p: p.mul_(1.5)), True),
    "one element": (without_gradients(lambda p: p[1, 5].add_(1)), True),
    "copied": (without_gradients(lambda p: p.copy_(torch.ones_like(p))), True),
    "set": (without_gradients(lambda p: p.set_(p * 1.5)), True),
    "other memory": (without_gradients(lambda p: setattr(p, "data", p.data * 1.5)), True),
    "swapped": (lambda d: torch.utils.swap_tensors(d.time.bias, nn.Parameter(d.time.bias.detach() + 1)), True),
    "exchanged": (lambda d: exchanged(d.down[1].read, d.up[1].read), True),
    "by a part that is detached": (without_gradients(lambda p: p.detach()[2].mul_(1.5)), True),
    "by .data": (without_gradients(lambda p: p.data.mul_(1.5)), False),
    "one element by .data": (without_gradients(lambda p: p.data[1, 5].add_(1)), False),
    "by numpy": (without_gradients(lambda p: p.detach().numpy().__setitem__(3, 2.0)), False),
    "by storage": (without_gradients(lambda p: p.untyped_storage().copy_((p * 1.5).untyped_storage())), False),
    "SGD": (partial(optimize, torch.optim.SGD), True),
    "Adam": (partial(optimize, torch.optim.Adam, foreach=True), True),
    "fused Adam": (partial(optimize, torch.optim.AdamW, fused=True), False),
    "average": (average, False),
    "loaded": (lambda d: d.load_state_dict({k: v * 1.1 for k, v in d.state_dict().items()}), True),
    "assigned": (lambda d: d.load_state_dict({k: v * 1.1 for k, v in d.state_dict().items()}, assign=True), True),
    "as a vector": (
        lambda d: nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(d.parameters()) * 1.1, d.parameters()),
        True,
    ),
}


@pytest.mark.processes
def test_every_write_reaches_the_ranks_that_have_the_parameter() -> None:
    """The next trajectory has it, and the next call where torch counts it."""
    plain, run = toy(), toy()
    trajectory = Trajectory(calls=2)
    with Engine(run, toy_plan(run, 2), EngineOptions(exact=True)) as engine, torch.no_grad():
        # those that count for the next trajectory first, whose start the others make doubtful by ending one early
        for name, (write, is_counted) in sorted(WRITES.items(), key=lambda item: item[1][1]):
            before = trajectory.through(plain)
            if is_counted:
                engine(**trajectory.inputs(0))
            else:
                trajectory.through(engine)
            for denoiser in (plain, run):
                with torch.enable_grad():
                    write(denoiser)
            expected = trajectory.through(plain)
            assert not torch.equal(expected[1], before[1]), name
            if is_counted:
                assert torch.equal(engine(**trajectory.inputs(1))[0], expected[1]), name
            assert equal(trajectory.through(engine), expected), name
