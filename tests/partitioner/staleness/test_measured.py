"""Measured staleness ranks placements as real one-step lag does, on a small UNet that was fitted briefly."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import nn

from partitioner.costs.roofline import estimate
from partitioner.errors import UsageError
from partitioner.graph.export import trace
from partitioner.graph.ir import TracedGraph
from partitioner.planning.build_problem import build_problem
from partitioner.planning.compile import compile
from partitioner.planning.options import PlanOptions
from partitioner.search.devices import Devices
from partitioner.search.solver import Solver
from partitioner.staleness.edge_errors import EdgeErrors, edge_errors_by_key, least_error
from partitioner.staleness.measured import evaluate_graph, measure_edge_errors, measure_module_edge_errors
from tests.support.lagged_outputs import lagged_outputs

WARMUP, STEPS = 4, 12


pytestmark = pytest.mark.slow  # its denoiser takes seconds to trace and to measure


class Small(NamedTuple):
    """steps: inputs of consecutive calls; outputs: the exact ones."""

    unet: nn.Module
    graph: TracedGraph
    state: dict[str, torch.Tensor]
    steps: list[dict[str, torch.Tensor]]
    outputs: list[torch.Tensor]


def discs(count: int, generator: torch.Generator) -> torch.Tensor:
    """(count, 3, 8, 8) images of a disc of one colour on a ground of another."""
    centre, radius = (torch.rand(count, k, 1, 1, generator=generator) for k in (2, 1))
    colours = torch.rand(2, count, 3, 1, 1, generator=generator) * 2 - 1
    place = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij"))
    distance = (place - (centre * 5 + 1)).norm(dim=1, keepdim=True)
    return torch.where(distance < radius * 2 + 1, colours[0], colours[1])


def fitted_unet(scheduler: DDIMScheduler) -> UNet2DModel:
    """A small denoiser after some seconds of training: with random weights lag means little."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4, attention_head_dim=8,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(unet.parameters(), 2e-3)
    for _ in range(150):
        noise = torch.randn(32, 3, 8, 8, generator=generator)
        timesteps = torch.randint(0, 1000, (32,), generator=generator)
        noisy = scheduler.add_noise(discs(32, generator), noise, timesteps)
        loss = (unet(noisy, timesteps, return_dict=False)[0] - noise).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return unet.eval()


@pytest.fixture(scope="module")
def small() -> Small:
    """A briefly fitted UNet, and STEPS of its 50 DDIM steps after WARMUP."""
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    unet = fitted_unet(scheduler)
    scheduler.set_timesteps(50)
    sample = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    steps, outputs = [], []
    with torch.no_grad():
        for timestep in scheduler.timesteps[: WARMUP + STEPS]:
            output = unet(sample, timestep[None], return_dict=False)[0]
            steps.append({"sample": sample, "timestep": timestep[None]})
            outputs.append(output)
            sample = scheduler.step(output, timestep, sample).prev_sample
    graph = trace(unet, {**steps[0], "return_dict": False}, {"sample": "latent", "timestep": "timestep"})
    return Small(unet, graph, dict(unet.state_dict()), steps[WARMUP:], outputs[WARMUP:])


@pytest.fixture(scope="module")
def drift(small: Small) -> EdgeErrors:
    _, graph, state, steps, _ = small
    return measure_edge_errors(graph, state, steps)


def test_interpreter_computes_what_the_module_does(small: Small) -> None:
    _, graph, state, steps, outputs = small
    with torch.no_grad():
        values = evaluate_graph(graph, state, steps[2])
    torch.testing.assert_close(values[graph.result_values[0]], outputs[2])


def test_without_a_cut_nothing_is_stale(small: Small, drift: EdgeErrors) -> None:
    _, graph, state, steps, outputs = small
    together = {node.name: 0 for node in graph.latent_nodes}
    assert drift.error(together) == 0
    for lagged, exact in zip(lagged_outputs(graph, state, steps, together), outputs[1:], strict=True):
        torch.testing.assert_close(lagged, exact)


def placements(graph: TracedGraph, count: int) -> list[dict[str, int]]:
    """Random chains and folds over two to four components, cut where cuts may stand."""
    problem = build_problem(graph, estimate(graph))
    rng = np.random.default_rng(0)
    legal = np.flatnonzero(problem.legal_border)[1:-1]
    found = []
    for number in range(count):
        components = 2 + number % 3
        cuts = np.sort(rng.choice(legal, components - 1 if number % 2 else 2 * (components - 1), replace=False))
        piece = np.searchsorted(cuts, np.arange(problem.size), side="right")
        component = piece if number % 2 else np.minimum(piece, len(cuts) - piece)
        found.append(dict(zip(problem.names, component.tolist(), strict=True)))
    return found


def test_what_a_profile_keeps_is_about_what_was_measured(small: Small, drift: EdgeErrors) -> None:
    graph = small.graph
    keys = [(graph.node_by_name[u].key, graph.node_by_name[v].key) for u, v in drift.edges]
    kept = edge_errors_by_key(graph, keys, drift.condensed(8).tolist())
    assert kept is not None
    for placed in placements(graph, 12):
        assert kept.error(placed) == pytest.approx(drift.error(placed), rel=0.1)
    assert edge_errors_by_key(graph, keys[1:], drift.condensed(8).tolist()[1:]) is None


def rank_correlation(a: list[float], b: list[float]) -> float:
    ranks = [np.argsort(np.argsort(x)) for x in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def test_measured_staleness_ranks_placements_as_real_lag_does(small: Small, drift: EdgeErrors) -> None:
    """Both what the solver minimises, the sum of the weights, and what the best splits are rescored with."""
    _, graph, state, steps, outputs = small
    placed = placements(graph, 60)
    true = []
    for placement in placed:
        lagged = lagged_outputs(graph, state, steps, placement)
        errors = [float((a - b).norm()) for a, b in zip(lagged, outputs[1:], strict=True)]
        true.append(float(np.mean(errors[1:])))  # the first lagged step has had no lag of its own before it
    assert min(true) > 0
    assert max(true) > 2 * min(true)
    sums = [sum(w for (u, v), w in drift.weights.items() if p[u] != p[v]) for p in placed]
    assert rank_correlation(sums, true) >= 0.9
    assert rank_correlation([drift.error(placement) for placement in placed], true) >= 0.9


def test_weights_are_the_solvers_staleness(small: Small, drift: EdgeErrors) -> None:
    graph = small.graph
    problem = build_problem(graph, estimate(graph), drift.weights)
    split = Solver(problem).solve(Devices.equal(2), "async", epsilon=0.1)
    placement = dict(zip(problem.names, split.assignment, strict=True))
    summed = sum(w for (u, v), w in drift.weights.items() if placement[u] != placement[v])
    assert split.evaluation.staleness == pytest.approx(summed)
    assert drift.error(placement) <= summed * (1 + 1e-9)


def test_good_splits_are_rescored(small: Small, drift: EdgeErrors) -> None:
    graph = small.graph
    problem = build_problem(graph, estimate(graph), drift.weights)
    splits = Solver(problem).sweep(Devices.equal(3), "async", epsilons=(0.0, 0.1, 0.3))
    best = least_error(drift, problem, splits)
    errors = [drift.error(dict(zip(problem.names, split.assignment, strict=True))) for split in splits]
    assert drift.error(dict(zip(problem.names, best.assignment, strict=True))) == min(errors)


def test_compile_measures_on_a_trajectory(small: Small, drift: EdgeErrors) -> None:
    example = {**small.steps[0], "return_dict": False}
    roles = {"sample": "latent", "timestep": "timestep"}
    options = PlanOptions(mode="async", force=True)
    plan = compile(small.unet, example, roles, devices=3, trajectory=small.steps, options=options)
    placement = plan.place(small.graph)
    summed = sum(w for (u, v), w in drift.weights.items() if placement[u] != placement[v])
    assert plan.predicted.staleness == pytest.approx(summed, rel=1e-4)
    unmeasured = compile(small.unet, example, roles, devices=3, options=options)
    assert drift.error(placement) <= drift.error(unmeasured.place(small.graph))


def test_what_was_measured_on_full_calls_holds_for_each_branch(small: Small) -> None:
    calls = [{**step, "sample": step["sample"].repeat(2, 1, 1, 1), "return_dict": False} for step in small.steps[:2]]
    one = {**small.steps[0], "return_dict": False}
    roles = {"sample": "latent", "timestep": "timestep"}
    options = PlanOptions(mode="async", force=True)
    plan = compile(small.unet, calls[0], roles, devices=4, branch_inputs=one, trajectory=calls, options=options)
    assert (plan.branches, plan.components) == (2, 2)
    assert plan.predicted.staleness > 0


def test_a_trajectory_of_other_calls_is_refused(small: Small) -> None:
    with pytest.raises(UsageError, match=r"call 0 of the trajectory: sample is missing"):
        measure_module_edge_errors(small.unet, small.graph, [{}, {}])
    other = {**small.steps[0], "sample": torch.zeros(2, 3, 8, 8)}
    with pytest.raises(
        UsageError, match=r"call 1 of the trajectory: sample is \[2, 3, 8, 8\]; expected \[1, 3, 8, 8\]"
    ):
        measure_module_edge_errors(small.unet, small.graph, [small.steps[0], other])


def test_one_step_is_no_trajectory(small: Small) -> None:
    _, graph, state, steps, _ = small
    with pytest.raises(UsageError, match="two steps"):
        measure_edge_errors(graph, state, steps[:1])
