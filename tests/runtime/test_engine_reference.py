"""Engine: one trajectory gives what the naive reference computes, node by node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from partitioner.graph.export import trace
from runtime.engine import Engine
from runtime.options import EngineOptions
from runtime.worker.predictor import PREDICTORS
from runtime.worker.specs import build_specs
from tests.support.engines import (
    ROLES,
    Trajectory,
    contiguous,
    equal,
    folded,
    largest_difference,
    plan_of,
    reference,
    run,
    toy_plan,
)
from tests.support.toy_plans import DENOISER, GRAPHS

pytestmark = pytest.mark.usefixtures("trace_once")


@pytest.mark.parametrize("placed", [contiguous, folded])
@pytest.mark.parametrize("components", [2, 3])
def test_exact_mode_gives_the_denoisers_own_output(components: int, placed: Callable[..., dict[str, int]]) -> None:
    trajectory = Trajectory()
    plan = toy_plan(DENOISER, components, placed=placed)
    assert equal(run(DENOISER, plan, trajectory, exact=True), trajectory.through(DENOISER))


def test_one_component_is_exact_without_warm_up() -> None:
    trajectory = Trajectory()
    plan = toy_plan(DENOISER, 1, warmup=1)
    assert equal(run(DENOISER, plan, trajectory), trajectory.through(DENOISER))


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("placed", [contiguous, folded])
@pytest.mark.parametrize("components", [2, 3])
def test_async_mode_computes_what_the_definition_says(
    components: int, placed: Callable[..., dict[str, int]], predictor: str
) -> None:
    trajectory = Trajectory()
    plan = toy_plan(DENOISER, components, placed=placed, predictor=predictor)
    expected = reference(
        DENOISER, GRAPHS[2](), placed(GRAPHS[2](), components), trajectory, warmup=2, predictor=predictor
    )
    assert equal(run(DENOISER, plan, trajectory), expected)
    exact = trajectory.through(DENOISER)
    assert equal(expected[:2], exact[:2])
    assert largest_difference(expected[2:], exact[2:]) > 0


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize(
    "periods",
    [(2, 1), pytest.param((3, 1), marks=pytest.mark.slow), pytest.param((2, 2, 1), marks=pytest.mark.slow), (3, 2, 1)],
)
def test_components_with_periods_recompute_only_when_they_are_due(periods: tuple[int, ...], predictor: str) -> None:
    trajectory = Trajectory(calls=9)
    plan = toy_plan(DENOISER, len(periods), placed=folded, periods=periods, predictor=predictor)
    expected = reference(
        DENOISER, GRAPHS[2](), folded(GRAPHS[2](), len(periods)), trajectory,
        warmup=2, predictor=predictor, periods=periods,
    )  # fmt: skip
    with Engine(DENOISER, plan, EngineOptions(transport="emulation")) as engine:
        assert equal(trajectory.through(engine), expected)
        steps = [report.steps for report in engine.stats.ranks]
    # 2 warm-up calls, then every p-th of the 7 that follow; rank 0 has the last component
    assert steps == [2 + -(-7 // period) for period in reversed(periods)]


@pytest.mark.parametrize("warmup", [1, 3, 7, 100])
def test_warm_up_lasts_as_long_as_asked(warmup: int) -> None:
    trajectory = Trajectory()
    got = run(DENOISER, toy_plan(DENOISER, 2), trajectory, warmup=warmup)
    assert equal(got, reference(DENOISER, GRAPHS[2](), contiguous(GRAPHS[2](), 2), trajectory, warmup=warmup))
    assert equal(got[:warmup], trajectory.through(DENOISER)[:warmup])


class Convolutions(nn.Module):
    """A denoiser of images, in the memory format that diffusers' documentation recommends for them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4 if i == 0 else 16, 16, 3, padding=1) for i in range(4))
        self.norm = nn.GroupNorm(4, 16)
        self.out = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> Any:
        shift = t / 1000 + context.mean()
        for layer in self.layers:
            x = nn.functional.silu(self.norm(layer(x) + shift))
        return (self.out(x),)


@pytest.mark.parametrize("transport", ["emulation", "processes"])
def test_a_denoiser_in_channels_last_gives_its_own_bits(transport: str) -> None:
    torch.manual_seed(0)
    denoiser = Convolutions().eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    trajectory = Trajectory(calls=5)
    trajectory.latents = [torch.randn(2, 4, 16, 16) for _ in range(5)]
    graph = trace(denoiser, trajectory.inputs(0), ROLES, model="convolutions")
    placement = contiguous(graph, 2)
    travels = build_specs(graph, placement, 2)[0][0].wires[-2].meta
    assert travels.stride[1] == 1
    plan = plan_of(graph, placement, warmup=2)
    assert equal(run(denoiser, plan, trajectory, transport=transport, exact=True), trajectory.through(denoiser))
    expected = reference(denoiser, graph, placement, trajectory, warmup=2, predictor=plan.predictor)
    assert equal(run(denoiser, plan, trajectory, transport=transport), expected)
