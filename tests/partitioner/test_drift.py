"""Measured staleness ranks placements as the error of real one-step lag does, on a small UNet with random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel

from partitioner.cost import estimate
from partitioner.drift import EdgeDrift, evaluate_graph, lagged_outputs, least_error, measure_drift
from partitioner.errors import UsageError
from partitioner.graph import build_problem
from partitioner.ir import TracedGraph
from partitioner.problem import Devices
from partitioner.solve import Solver
from partitioner.trace import trace

STEPS = 7
Small = tuple[TracedGraph, dict[str, torch.Tensor], list[dict[str, torch.Tensor]], list[torch.Tensor]]


@pytest.fixture(scope="module")
def small() -> Small:
    """(graph, state, inputs of the middle steps of 50 DDIM steps, the exact outputs of these)."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4, attention_head_dim=8,
    ).eval()  # fmt: skip
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(50)
    sample = torch.randn(1, 3, 8, 8)
    steps, outputs = [], []
    with torch.no_grad():
        for timestep in scheduler.timesteps[20 : 20 + STEPS]:
            output = unet(sample, timestep[None], return_dict=False)[0]
            steps.append({"sample": sample, "timestep": timestep[None]})
            outputs.append(output)
            sample = scheduler.step(output, timestep, sample).prev_sample
    graph = trace(unet, {**steps[0], "return_dict": False}, {"sample": "latent", "timestep": "timestep"})
    return graph, dict(unet.state_dict()), steps, outputs


@pytest.fixture(scope="module")
def drift(small: Small) -> EdgeDrift:
    graph, state, steps, _ = small
    return measure_drift(graph, state, steps)


def test_interpreter_computes_what_the_module_does(small: Small) -> None:
    graph, state, steps, outputs = small
    with torch.no_grad():
        values = evaluate_graph(graph, state, steps[2])
    torch.testing.assert_close(values[graph.result_values[0]], outputs[2])


def test_without_a_cut_nothing_is_stale(small: Small, drift: EdgeDrift) -> None:
    graph, state, steps, outputs = small
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


def rank_correlation(a: list[float], b: list[float]) -> float:
    ranks = [np.argsort(np.argsort(x)) for x in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def test_measured_staleness_ranks_placements_as_real_lag_does(small: Small, drift: EdgeDrift) -> None:
    graph, state, steps, outputs = small
    placed = placements(graph, 60)
    true = []
    for placement in placed:
        lagged = lagged_outputs(graph, state, steps, placement)
        errors = [float((a - b).norm()) for a, b in zip(lagged, outputs[1:], strict=True)]
        true.append(float(np.mean(errors[1:])))  # the first lagged step has had no lag of its own before it
    assert min(true) > 0
    assert max(true) > 2 * min(true)
    assert rank_correlation([drift.error(placement) for placement in placed], true) >= 0.9
    weights = drift.weights
    sums = [sum(w for (u, v), w in weights.items() if placement[u] != placement[v]) for placement in placed]
    assert rank_correlation(sums, true) >= 0.75


def test_weights_are_the_solvers_staleness(small: Small, drift: EdgeDrift) -> None:
    graph, *_ = small
    problem = build_problem(graph, estimate(graph), drift.weights)
    split = Solver(problem).solve(Devices.equal(2), "async", epsilon=0.1)
    placement = dict(zip(problem.names, split.assignment, strict=True))
    summed = sum(w for (u, v), w in drift.weights.items() if placement[u] != placement[v])
    assert split.evaluation.staleness == pytest.approx(summed)
    assert drift.error(placement) <= summed * (1 + 1e-9)


def test_good_splits_are_rescored(small: Small, drift: EdgeDrift) -> None:
    graph, *_ = small
    problem = build_problem(graph, estimate(graph), drift.weights)
    splits = Solver(problem).sweep(Devices.equal(3), "async", epsilons=(0.0, 0.1, 0.3))
    best = least_error(drift, problem, splits)
    errors = [drift.error(dict(zip(problem.names, split.assignment, strict=True))) for split in splits]
    assert drift.error(dict(zip(problem.names, best.assignment, strict=True))) == min(errors)


def test_one_step_is_no_trajectory(small: Small) -> None:
    graph, state, steps, _ = small
    with pytest.raises(UsageError, match="two steps"):
        measure_drift(graph, state, steps[:1])
