"""Engine: what it computes against the naive reference, on every transport, and what it notices, keeps and refuses."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import partitioner
from partitioner.errors import PlanError
from partitioner.graph.export import trace
from partitioner.plan.plan import Plan
from partitioner.plan.ranks import seat_of
from partitioner.planning.planner import Options
from runtime.engine import Engine
from runtime.errors import ComponentFailed, EngineClosed, InputError, NonFiniteValue, PlanMismatch
from runtime.options import TRANSPORTS, EngineOptions
from runtime.stats import Stats
from runtime.worker.predictor import PREDICTORS
from runtime.worker.specs import build_specs
from tests.support.engines import (
    ROLES,
    WIDTH,
    ToyDenoiser,
    Trajectory,
    contiguous,
    equal,
    folded,
    largest_difference,
    plan_of,
    reference,
    run,
    toy,
    toy_graph,
    toy_plan,
)

DENOISER = toy()
GRAPHS = {rows: cache(lambda rows=rows: toy_graph(DENOISER, rows)) for rows in (1, 2, 4)}


# ---- one trajectory, against the naive reference


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
@pytest.mark.parametrize("periods", [(2, 1), (3, 1), (2, 2, 1), (3, 2, 1)])
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


# ---- several trajectories through one engine, on every transport


@dataclass(frozen=True)
class Kind:
    """A plan, and the naive reference for it."""

    plan: Plan

    def alone(self, trajectory: Trajectory) -> list[torch.Tensor]:
        """The trajectory as if nothing had been run before it."""
        rows = trajectory.latents[0].shape[0]
        branches = self.plan.branches if rows % self.plan.branches == 0 else 1
        graph = GRAPHS[rows // branches]()
        parts = [
            reference(
                DENOISER, graph, self.plan.place(graph), half,
                warmup=self.plan.warmup, predictor=self.plan.predictor, periods=self.plan.periods,
            )
            for half in trajectory.halves(branches)
        ]  # fmt: skip
        return [torch.cat(outputs) for outputs in zip(*parts, strict=True)]


KINDS = {
    "folded": Kind(toy_plan(DENOISER, 3, placed=folded, predictor="adaptive")),
    "branches": Kind(toy_plan(DENOISER, 2, branches=2, periods=(2, 1), predictor="linear")),
    "held": Kind(toy_plan(DENOISER, 2, placed=folded, periods=(2, 1), predictor="hold")),
}


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


# ---- where a trajectory starts


class Scheduler:
    """As diffusers' are seen: set_timesteps makes a new tensor."""

    timesteps: torch.Tensor

    def set_timesteps(self, count: int) -> None:
        self.timesteps = torch.arange(count)


def test_a_scheduler_tells_where_a_trajectory_starts() -> None:
    """Also where the timesteps fall on, and where one repeats, as in two-call samplers."""
    kind, scheduler = KINDS["folded"], Scheduler()
    options = EngineOptions(transport="emulation")
    with Engine(DENOISER, kind.plan, options, scheduler=lambda: scheduler) as engine:
        for start in (900.0, 600.0, 300.0):
            trajectory = Trajectory()
            trajectory.timesteps = [torch.tensor(start - down) for down in (0, 20, 20, 40, 40, 60, 60)]
            scheduler.set_timesteps(7)
            assert equal(trajectory.through(engine), kind.alone(trajectory))


def test_a_scheduler_may_be_exchanged() -> None:
    kind, schedulers = KINDS["folded"], [Scheduler(), Scheduler()]
    for scheduler in schedulers:
        scheduler.set_timesteps(7)
    trajectory = Trajectory()
    expected = kind.alone(trajectory)
    with Engine(DENOISER, kind.plan, EngineOptions(transport="emulation"), scheduler=lambda: schedulers[0]) as engine:
        assert equal(trajectory.through(engine), expected)
        schedulers.reverse()
        assert equal(trajectory.through(engine), expected)


# ---- any module


def test_any_module_is_compiled_and_run() -> None:
    class Pair(nn.Module):
        """Two results, one of them not a tensor of the latent's shape; weights shared by two layers."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
            self.layers[3] = self.layers[0]
            self.register_buffer("scale", torch.tensor(0.5))

        def forward(self, sample: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            for layer in self.layers:
                sample = torch.relu(layer(sample)) + sigma[:, None] * self.scale
            return sample, sample.sum(dim=1)

    torch.manual_seed(0)
    module = Pair().eval()
    example = {"sample": torch.zeros(2, 16), "sigma": torch.zeros(2)}
    roles = {"sample": "latent", "sigma": "timestep"}
    plan = partitioner.compile(module, example, roles, devices=2, options=Options(mode="async", force=True, warmup=2))
    assert plan.components == 2
    inputs = [(torch.randn(2, 16), torch.full((2,), 1.0 - call / 4)) for call in range(4)]
    with torch.no_grad():
        expected = [module(*pair) for pair in inputs]
    for exact in (True, False):
        with Engine(module, plan, EngineOptions(transport="emulation", exact=exact)) as engine:
            got = [engine(*pair) for pair in inputs]
        checked = slice(None) if exact else slice(2)
        for one, other in zip(got[checked], expected[checked], strict=True):
            assert equal(one, other)


def test_compile_gives_two_branches_where_it_is_told_how_a_half_looks() -> None:
    example, half = (
        {"x": torch.zeros(rows, 5, WIDTH), "t": torch.zeros(()), "context": torch.zeros(rows, 6)} for rows in (2, 1)
    )
    plan = partitioner.compile(
        DENOISER, example, ROLES, devices=2, branch_inputs=half, options=Options(branches=2, force=True)
    )
    assert (plan.branches, plan.components) == (2, 1)
    trajectory = Trajectory()
    own = trajectory.through(DENOISER)
    assert largest_difference(run(DENOISER, plan, trajectory), own) < 1e-4


def test_a_plan_serves_the_denoiser_in_another_dtype() -> None:
    denoiser = toy().to(torch.bfloat16)
    trajectory = Trajectory()
    trajectory.latents = [latent.bfloat16() for latent in trajectory.latents]
    trajectory.context = trajectory.context.bfloat16()
    plan = toy_plan(DENOISER, 3)
    assert equal(run(denoiser, plan, trajectory, exact=True), trajectory.through(denoiser))
    assert equal(run(denoiser, plan, trajectory), run(denoiser, plan, trajectory, transport="threads"))


# ---- what is refused


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_arguments: Any, **_options: Any) -> None:
        raise AssertionError("something was started")

    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr(threading.Thread, "start", started)


@pytest.mark.usefixtures("nothing_starts")
class TestRefusedBeforeAnythingStarts:
    def test_a_plan_of_another_model(self) -> None:
        class Other(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(6, WIDTH)

            def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor]:
                return (self.first(x) * t + self.second(context)[:, None],)

        with pytest.raises(PlanMismatch, match=r"made for toy \(ToyDenoiser\).*class Other.*partition-model") as caught:
            Engine(Other().eval(), toy_plan(DENOISER))
        assert "\n" not in str(caught.value)

    def test_a_plan_of_the_same_class_with_another_depth(self) -> None:
        other = toy()
        other.down.append(other.down[0])
        with pytest.raises(PlanMismatch, match="is not in the"):
            Engine(other, toy_plan(DENOISER))

    def test_a_plan_of_other_arguments(self) -> None:
        class Renamed(ToyDenoiser):
            def forward(self, x: torch.Tensor, t: torch.Tensor, prompt: torch.Tensor) -> Any:  # type: ignore[override]
                return super().forward(x, t, prompt)

        message = r"made for toy \(ToyDenoiser\), and this Renamed cannot be traced with its arguments.*'prompt'"
        with pytest.raises(PlanMismatch, match=message) as caught:
            Engine(Renamed().eval(), toy_plan(DENOISER))
        assert "\n" not in str(caught.value)

    def test_a_plan_for_more_devices(self) -> None:
        with pytest.raises(PlanMismatch, match=r"needs 2 devices \(1 branches of 2 components\), got 3"):
            Engine(DENOISER, toy_plan(DENOISER), devices=["cpu"] * 3)

    def test_an_unknown_transport(self) -> None:
        with pytest.raises(InputError, match="transport is one of processes, threads, emulation; got 'mpi'"):
            Engine(DENOISER, toy_plan(DENOISER), EngineOptions(transport="mpi"))

    def test_a_module_in_training_mode(self) -> None:
        with pytest.raises(PlanMismatch, match=r"\.eval\(\)"):
            Engine(toy().train(), toy_plan(DENOISER))


@pytest.fixture(scope="module")
def emulated() -> Iterator[Engine]:
    with Engine(DENOISER, toy_plan(DENOISER), EngineOptions(transport="emulation")) as engine:
        yield engine


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": None}, "context missing.*Make a plan for such calls: partition-model --model toy --devices 2"),
        ({"mask": torch.zeros(2)}, "cannot be called like this: .*unexpected keyword argument 'mask'"),
        ({"gain": torch.ones(2)}, "gain not in it.*partition-model"),
        ({"x": torch.zeros(5, WIDTH)}, r"x has 2 dimensions \(\[5, 8\]\), the plan has 3"),
        ({"t": torch.zeros(2)}, r"t has 1 dimensions \(\[2\]\), the plan has 0"),
        ({"gain": object()}, "gain is a object"),
        ({"x": torch.zeros(2, 5, 9)}, "does not fit this call.*Make a plan for it: partition-model --model toy"),
    ],
)
def test_a_call_that_does_not_fit_is_refused_in_words(emulated: Engine, change: dict[str, Any], message: str) -> None:
    arguments = {**Trajectory().inputs(0), **change}
    with pytest.raises(InputError, match=message):
        emulated(**arguments)
    assert equal(Trajectory(calls=2).through(emulated), Trajectory(calls=2).through(DENOISER))


def test_another_literal_is_another_trace(emulated: Engine) -> None:
    inputs = Trajectory().inputs(0)
    with torch.no_grad():
        assert torch.equal(emulated(**inputs, gain=2.0)[0], DENOISER(**inputs, gain=2.0)[0])
        assert torch.equal(emulated(**inputs)[0], DENOISER(**inputs)[0])


def test_a_shape_is_traced_once_in_an_engines_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a trajectory's start costs no trace, whatever was run in between."""
    rows = []

    def counted(denoiser: Any, arguments: Any, roles: Any, *, model: str) -> Any:
        rows.append(arguments["x"].shape[0])
        return trace(denoiser, arguments, roles, model=model)

    monkeypatch.setattr("runtime.driver.traced_graphs.trace", counted)
    with Engine(DENOISER, toy_plan(DENOISER, 2), EngineOptions(transport="emulation")) as engine:
        for count in (2, 4, 2, 4, 2):
            Trajectory(calls=3, rows=count).through(engine)
    assert rows == [2, 4]


def test_positional_arguments_are_those_of_the_denoiser(emulated: Engine) -> None:
    inputs = Trajectory().inputs(0)
    with torch.no_grad():
        assert torch.equal(emulated(*inputs.values())[0], DENOISER(**inputs)[0])


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_closed_engine_says_so(transport: str) -> None:
    before = threading.active_count()
    plan = toy_plan(DENOISER)
    with Engine(DENOISER, plan, EngineOptions(transport=transport)) as engine:
        engine(**Trajectory().inputs(0))
    engine.close()
    with pytest.raises(EngineClosed, match="closed; start another one"):
        engine(**Trajectory().inputs(0))
    assert threading.active_count() <= before


class Failing(nn.Module):
    """The second layer's index leaves its table where the latent says so."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.table, self.last = nn.Linear(4, 4), nn.Embedding(3, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        hidden = self.first(x)
        return (self.last(hidden + self.table(hidden.abs().sum().long().clamp(min=0)) + hidden.log()),)


def _failing_engine(**options: Any) -> Engine:
    torch.manual_seed(0)
    module = Failing().eval()
    graph = partitioner.trace(module, {"x": torch.zeros(2, 4)}, {"x": "latent"}, model="failing")
    placement = {node.name: int(node.name not in ("linear", "abs_1")) for node in graph.latent_nodes}
    return Engine(module, plan_of(graph, placement), EngineOptions(**options))


def test_an_error_inside_a_component_names_its_rank_component_step_and_node() -> None:
    with _failing_engine(transport="emulation", exact=True) as engine:
        engine(torch.zeros(2, 4))
        with pytest.raises(ComponentFailed, match=r"^rank 0 \(component 1\), step 1: IndexError") as caught:
            engine(torch.full((2, 4), 1e6))
        assert (caught.value.rank, caught.value.component, caught.value.step) == (0, 1, 1)
        assert caught.value.node == "table/embedding.0"
        with pytest.raises(EngineClosed) as closed:
            engine(torch.zeros(2, 4))
        assert closed.value.__cause__ is caught.value


def test_check_finite_names_the_node_that_made_it() -> None:
    message = r"holds NaN or Inf, first made at node /log\.0"
    with (
        _failing_engine(transport="emulation", check_finite=True) as engine,
        pytest.raises(NonFiniteValue, match=message),
    ):
        engine(torch.zeros(2, 4))


def test_a_hostile_plan_is_refused_before_the_model_is_traced() -> None:
    document = toy_plan(DENOISER).model_dump(mode="json")
    document["placement"]["os/system.0"] = 7
    with pytest.raises(PlanError):
        Plan.parse(document)
