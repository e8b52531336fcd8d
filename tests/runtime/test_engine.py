"""Engine: runs any module, refuses what does not fit, and ends with an error that names its place."""

from __future__ import annotations

import copy
import pickle
import subprocess
import threading
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import partitioner
from partitioner.errors import PlanError
from partitioner.plan.plan import Plan
from partitioner.planning.options import PlanOptions
from runtime.engine import Engine
from runtime.errors import ComponentFailed, EngineClosed, InputError, NonFiniteValue, PlanMismatch
from runtime.options import TRANSPORTS, EngineOptions
from tests.support.engines import (
    ROLES,
    WIDTH,
    ToyDenoiser,
    Trajectory,
    equal,
    largest_difference,
    plan_of,
    run,
    toy,
    toy_plan,
)
from tests.support.toy_plans import DENOISER

pytestmark = pytest.mark.usefixtures("trace_once")

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
    plan = partitioner.compile(
        module, example, roles, devices=2, options=PlanOptions(mode="async", force=True, warmup=2)
    )
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
        DENOISER, example, ROLES, devices=2, branch_inputs=half, options=PlanOptions(branches=2, force=True)
    )
    assert (plan.branches, plan.components) == (2, 1)
    trajectory = Trajectory()
    own = trajectory.through(DENOISER)
    assert largest_difference(run(DENOISER, plan, trajectory), own) < 1e-4


class ListOfSamples(nn.Module):
    """Takes a list of samples of any size and returns one, as Z-Image does, with a dict beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: list[torch.Tensor], t: torch.Tensor, texts: tuple[torch.Tensor, ...]) -> Any:
        hidden = torch.cat([self.first(sample) + text.mean() for sample, text in zip(x, texts, strict=True)])
        made = list((self.second(hidden) * t.mean()).split([len(sample) for sample in x]))
        return made, {"all": hidden, "none": None}


def test_lists_of_tensors_go_in_and_out() -> None:
    denoiser = ListOfSamples().eval()
    inputs = {
        "x": [torch.randn(2, 4), torch.randn(6, 4)],
        "t": torch.ones(1),
        "texts": (torch.randn(3), torch.randn(5)),
    }
    plan = partitioner.compile(
        denoiser, inputs, {"x": "latent", "t": "timestep", "texts": "prompt"}, 2, options=PlanOptions(force=True)
    )
    options = EngineOptions(transport="emulation", exact=True, microbatches=2)  # samples are no rows
    with Engine(denoiser, plan, options) as engine, torch.no_grad():
        for changed in (inputs, {**inputs, "x": [torch.randn(4, 4), torch.randn(2, 4)]}):
            samples, rest = engine(**changed)
            wanted, wanted_rest = denoiser(**changed)
            assert [type(samples), type(rest)] == [list, dict]
            assert all(map(torch.equal, samples, wanted))
            assert torch.equal(rest["all"], wanted_rest["all"])
            assert rest["none"] is None


class PerToken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time, self.first, self.second = nn.Linear(1, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> Any:
        scale = self.time(t[..., None] / 1000)
        return (self.second(self.first(x) * (scale if t.dim() == 2 else scale[:, None])),)


def test_a_timestep_for_each_token_is_another_kind_of_call() -> None:
    denoiser, x, t = PerToken().eval(), torch.randn(1, 5, 4), torch.tensor([900.0])
    plan = partitioner.compile(
        denoiser, {"x": x, "t": t}, {"x": "latent", "t": "timestep"}, 2, options=PlanOptions(force=True)
    )
    options = EngineOptions(transport="emulation", warmup=1, quality="off")
    with Engine(denoiser, plan, options) as engine, torch.no_grad():
        for value in (900.0, 500.0, 100.0):
            per_token = torch.full((1, 5), value)
            per_token[:, 0] = 0  # a frame that is given
            exact = engine(x, per_token)[0]
            if value == 900.0:
                assert torch.equal(exact, denoiser(x, per_token)[0])
        assert engine.stats.async_steps == 2
        assert torch.equal(engine(x, t)[0], denoiser(x, t)[0])


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

        with pytest.raises(PlanMismatch, match=r"made for toy \(ToyDenoiser\).*class Other.*make a plan") as caught:
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

    def test_a_denoiser_that_no_plan_fits_is_not_to_be_planned(self) -> None:
        denoiser = toy()
        denoiser.down[0].register_forward_hook(lambda module, *_: setattr(module, "calls", module.calls + 1))
        denoiser.down[0].calls = 0
        with pytest.raises(
            PlanMismatch, match=r"this ToyDenoiser cannot be traced: every call of toy .*calls"
        ) as caught:
            Engine(denoiser, toy_plan(DENOISER))
        assert type(caught.value) is PlanMismatch

    def test_a_plan_for_more_devices(self) -> None:
        with pytest.raises(PlanMismatch, match=r"needs 2 devices \(1 branches of 2 components\), got 3"):
            Engine(DENOISER, toy_plan(DENOISER), devices=["cpu"] * 3)

    def test_an_unknown_transport(self) -> None:
        with pytest.raises(InputError, match="transport is 'mpi'; expected one of 'processes', 'threads', 'emulation'"):
            Engine(DENOISER, toy_plan(DENOISER), EngineOptions(transport="mpi"))

    def test_a_module_in_training_mode(self) -> None:
        with pytest.raises(PlanMismatch, match=r"\.eval\(\)"):
            Engine(toy().train(), toy_plan(DENOISER))

    @pytest.mark.parametrize("by", [copy.copy, copy.deepcopy, pickle.dumps])
    def test_an_engine_that_is_to_be_in_two_places(self, by: Any) -> None:
        with (
            Engine(DENOISER, toy_plan(DENOISER), EngineOptions(transport="emulation")) as engine,
            pytest.raises(TypeError, match="neither copied nor sent to another process"),
        ):
            by(engine)


def test_torchs_default_device_is_none_of_the_engines() -> None:
    denoiser, trajectory = toy(), Trajectory()
    wanted = run(denoiser, toy_plan(denoiser), trajectory)
    with torch.device("meta"), Engine(denoiser, toy_plan(denoiser), EngineOptions(transport="threads")) as engine:
        assert equal(trajectory.through(engine), wanted)


# ---- its end


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


def test_torchs_profiler_shows_which_component_computes() -> None:
    plan = toy_plan(DENOISER)
    engine = Engine(DENOISER, plan, EngineOptions(transport="emulation"))
    with engine, profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        Trajectory(calls=2).through(engine)
    seen = {event.key.partition(":")[0] for event in profiler.key_averages()}
    assert {f"component {number}" for number in range(plan.components)} <= seen


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
