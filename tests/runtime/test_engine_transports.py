"""Engine: several trajectories through one engine, on every transport; none sees what another leaves behind."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from partitioner.plan.ranks import seat_of
from runtime.engine import Engine
from runtime.errors import InputError
from runtime.options import TRANSPORTS, EngineOptions
from runtime.stats import Stats
from runtime.worker.specs import build_specs
from tests.support.engines import Trajectory, equal, largest_difference, toy, toy_plan
from tests.support.toy_plans import DENOISER, GRAPHS, KINDS, Kind

pytestmark = pytest.mark.usefixtures("trace_once")


@pytest.fixture(scope="module", params=[f"{transport} {kind}" for transport in TRANSPORTS for kind in KINDS])
def running(request: pytest.FixtureRequest) -> Iterator[tuple[Engine, Kind]]:
    """One engine for all the tests below: whatever one leaves behind must not show in the next."""
    transport, name = request.param.split()
    with Engine(DENOISER, KINDS[name].plan, EngineOptions(transport=transport)) as engine:
        yield engine, KINDS[name]


def test_a_second_trajectory_equals_the_first(running: tuple[Engine, Kind]) -> None:
    engine, kind = running
    trajectory = Trajectory()
    first, second = trajectory.through(engine), trajectory.through(engine)
    assert equal(first, kind.alone(trajectory))
    assert equal(second, first)


def test_a_trajectory_of_warm_up_only_is_the_denoisers_own(running: tuple[Engine, Kind]) -> None:
    engine, kind = running
    trajectory = Trajectory(calls=kind.plan.warmup, seed=1)
    got, own = trajectory.through(engine), trajectory.through(DENOISER)
    print(f"largest difference {largest_difference(got, own):.2e}")
    if kind.plan.branches == 1:
        assert equal(got, own)
    assert largest_difference(got, own) < 1e-4  # half a batch may take another kernel


def test_an_abandoned_trajectory_leaves_nothing_behind(running: tuple[Engine, Kind]) -> None:
    engine, kind = running
    Trajectory(calls=4, seed=2).through(engine)
    trajectory = Trajectory(seed=3)
    assert equal(trajectory.through(engine), kind.alone(trajectory))


def test_cache_contexts_do_not_see_each_other(running: tuple[Engine, Kind]) -> None:
    """As Wan's pipeline does: conditional and unconditional calls take turns."""
    engine, kind = running
    each = {"cond": Trajectory(seed=4), "uncond": Trajectory(seed=5)}
    got: dict[str, list[torch.Tensor]] = {name: [] for name in each}
    for call in range(len(each["cond"])):
        for name, trajectory in each.items():
            engine.in_context(name)
            got[name].append(engine(**trajectory.inputs(call))[0])
    engine.in_context("")
    for name, trajectory in each.items():
        assert equal(got[name], kind.alone(trajectory))


def test_a_prompt_changed_in_place_starts_a_trajectory(running: tuple[Engine, Kind]) -> None:
    engine, kind = running
    first = Trajectory(calls=4, seed=6)
    assert equal(first.through(engine), kind.alone(first))
    later = Trajectory(calls=4, seed=6)
    later.timesteps = [time - 400 for time in later.timesteps]  # falls on: only the prompt tells
    later.context = first.context
    later.context.mul_(2)
    assert equal(later.through(engine), kind.alone(later))


def test_the_same_prompt_in_another_tensor_goes_on(running: tuple[Engine, Kind]) -> None:
    engine, kind = running
    trajectory = Trajectory(seed=7)
    expected = kind.alone(trajectory)
    got = []
    for call in range(len(trajectory)):
        trajectory.context = trajectory.context.clone()
        got.append(engine(**trajectory.inputs(call))[0])
    assert equal(got, expected)


@pytest.mark.parametrize("rows", [4, 1])
def test_another_batch_than_the_plans_is_traced_and_placed_alike(running: tuple[Engine, Kind], rows: int) -> None:
    engine, kind = running
    trajectory = Trajectory(rows=rows, seed=8)
    assert equal(trajectory.through(engine), kind.alone(trajectory))


def test_what_the_caller_writes_to_its_tensors_later_does_not_matter(running: tuple[Engine, Kind]) -> None:
    engine, kind = running
    trajectory = Trajectory(seed=9)
    expected = kind.alone(trajectory)
    latent = torch.empty_like(trajectory.latents[0])
    got = []
    for call in range(len(trajectory)):
        latent.copy_(trajectory.latents[call])
        output = engine(**{**trajectory.inputs(call), "x": latent})[0]
        got.append(output.clone())
        latent.fill_(float("nan"))
        output.fill_(float("nan"))
    assert equal(got, expected)


def _float32(number: int) -> torch.Tensor:
    return torch.tensor(number, dtype=torch.float32)


def _float64(number: int) -> torch.Tensor:
    return torch.tensor(number, dtype=torch.float64)


def test_timesteps_of_every_kind_mean_the_same(running: tuple[Engine, Kind]) -> None:
    engine, kind = running
    trajectory = Trajectory(seed=10)
    expected = kind.alone(trajectory)
    numbers = [int(time) for time in trajectory.timesteps]
    for make in (int, float, torch.tensor, _float32, _float64):
        trajectory.timesteps = [make(number) for number in numbers]
        assert equal(trajectory.through(engine), expected)


def test_inference_tensors_are_compared_at_every_call(running: tuple[Engine, Kind]) -> None:
    """They have no version counter to tell whether they were written to."""
    engine, kind = running
    first = Trajectory(calls=3, seed=11)
    with torch.inference_mode():
        first.context = first.context.clone()
        got = first.through(engine)
        first.context.neg_()
        later = Trajectory(calls=3, seed=11)
        later.timesteps = [time - 300 for time in later.timesteps]
        later.context = first.context
        got_later = later.through(engine)
    later.context = later.context.clone()
    assert equal(got_later, kind.alone(later))
    later.context = -later.context
    later.timesteps = Trajectory(calls=3).timesteps
    assert equal(got, kind.alone(later))


def test_a_refused_call_changes_nothing(running: tuple[Engine, Kind]) -> None:
    engine, kind = running
    trajectory = Trajectory(seed=12)
    got = []
    for call in range(len(trajectory)):
        with pytest.raises(InputError):
            engine(x=trajectory.latents[call], t=trajectory.timesteps[call])
        got.append(engine(**trajectory.inputs(call))[0])
    assert equal(got, kind.alone(trajectory))


def test_a_rank_holds_the_parameters_that_its_component_reads_and_no_others(running: tuple[Engine, Kind]) -> None:
    engine, kind = running
    plan = kind.plan
    specs, preamble = build_specs(GRAPHS[2](), plan.place(GRAPHS[2]()), plan.components)
    size = {path: tensor.numel() * 4 for path, tensor in DENOISER.named_parameters()}
    expected = []
    for rank in range(plan.ranks):
        paths = {p.path for p in specs[seat_of(rank, plan.components)[1]].parameters}
        paths |= {p.path for p in preamble.parameters} if rank == 0 else set()
        expected.append(sum(size[path] for path in paths))
    held = [report.parameter_bytes for report in engine.stats.ranks]
    assert held == expected
    assert sum(held[: plan.components]) <= 1.02 * sum(size.values())


def test_the_programs_of_a_branch_share_no_parameter() -> None:
    """And together they have them all: what each reads is in test_component."""
    for kind in KINDS.values():
        graph = GRAPHS[2]()
        specs, preamble = build_specs(graph, kind.plan.place(graph), kind.plan.components)
        read = [p.path for spec in specs for p in spec.parameters] + [p.path for p in preamble.parameters]
        assert sorted(read) == sorted(path for path, _ in DENOISER.named_parameters())


def settled(engine: Engine) -> Stats:
    """The stats once every rank has done what it was told: after a call the others may still be at it."""
    stats, deadline = engine.stats, time.monotonic() + 30
    while True:
        time.sleep(0.1)
        again = engine.stats
        quiet = [r.steps for r in again.ranks] == [r.steps for r in stats.ranks]
        if quiet and not any(r.busy for r in again.ranks):
            return again
        assert time.monotonic() < deadline, again
        stats = again


def test_stats_count_calls_bytes_and_waits(running: tuple[Engine, Kind]) -> None:
    engine, kind = running
    before = settled(engine)
    Trajectory(calls=5, seed=13).through(engine)
    periods = [kind.plan.periods[seat_of(rank, kind.plan.components)[1]] for rank in range(kind.plan.ranks)]
    due = [2 + -(-3 // period) for period in periods]
    after = settled(engine)
    assert [r.steps - b.steps for r, b in zip(after.ranks, before.ranks, strict=True)] == due
    assert (after.steps - before.steps, after.exact_steps - before.exact_steps) == (5, 2)
    assert after.exact_ms is not None
    assert after.async_ms is not None
    assert min(after.exact_ms, after.async_ms) > 0
    for old, new in zip(before.ranks, after.ranks, strict=True):
        assert new.sent_bytes > old.sent_bytes
        assert new.wait_seconds >= old.wait_seconds
        assert new.resident_bytes > 0


@pytest.mark.parametrize("transport", ["emulation", "threads", "processes"])
def test_a_closed_engine_keeps_no_parameters(transport: str) -> None:
    """Not even where somebody keeps the engine."""
    denoiser = toy()
    with Engine(denoiser, toy_plan(denoiser), EngineOptions(transport=transport, exact=True)) as engine:
        Trajectory(calls=1).through(engine)
        worker, preambles = engine._ranks.workers[0], engine._first._distribution._preambles
        assert all((worker.parameters, worker._components, worker._static, preambles))
    assert not any((worker.parameters, worker._components, worker._static, worker._contexts, preambles))
