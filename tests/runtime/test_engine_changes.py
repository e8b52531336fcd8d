"""What is done to a denoiser while an engine runs it: the next call is what the denoiser itself would give."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import remove_parametrizations

from partitioner import compile
from partitioner.planning.options import PlanOptions
from runtime.driver.denoiser_changes import KEPT
from runtime.driver.traced_graphs import TracedGraphs
from runtime.engine import Engine
from runtime.errors import InputError, PlanMismatch
from runtime.options import EngineOptions
from tests.support.engines import Trajectory, equal, toy, toy_plan


class Wrapper(nn.Module):
    """A layer with something beside it, as PEFT wraps layers."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.down = nn.Linear(base_layer.in_features, 2, bias=False)
        self.up = nn.Linear(2, base_layer.out_features, bias=False)
        self.scale = 1.0
        self.merged: list[str] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.base_layer(x)
        return made if self.merged else made + self.up(self.down(x)) * self.scale


def wrap(denoiser: Any) -> None:
    for index, block in enumerate((*denoiser.down, *denoiser.up)):
        torch.manual_seed(index)
        block.write = Wrapper(block.write)


def unwrap(denoiser: Any) -> None:
    for block in (*denoiser.down, *denoiser.up):
        block.write = block.write.base_layer


def merge(denoiser: Any) -> None:
    for block in (*denoiser.down, *denoiser.up):
        layer = block.write
        layer.base_layer.weight.data += layer.up.weight.data @ layer.down.weight.data * layer.scale
        layer.merged.append("default")


def rescale(denoiser: Any) -> None:
    for block in denoiser.up:
        block.write.scale = 0.25


def write(denoiser: Any) -> None:
    with torch.no_grad():
        denoiser.up[1].read.weight.mul_(1.5)
        denoiser.time.bias.add_(1)


def write_by_data(denoiser: Any) -> None:
    for parameter in denoiser.parameters():
        parameter.data.mul_(1.1)


def other_memory(denoiser: Any) -> None:
    denoiser.down[2].write.weight.data = denoiser.down[2].write.weight.data.flip(0).contiguous()


def other_parameter(denoiser: Any) -> None:
    denoiser.down[0].condition.weight = nn.Parameter(torch.full((8, 8), 0.1))


def doubled(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
    return output * 2


def hook(denoiser: Any) -> None:
    denoiser.up[0].register_forward_hook(doubled)


def unhook(denoiser: Any) -> None:
    denoiser.up[0]._forward_hooks.clear()


def other_forward(denoiser: Any) -> None:
    forward = denoiser.down[1].forward
    denoiser.down[1].forward = lambda *args: forward(*args) + 1


def exchange(denoiser: Any) -> None:
    down = denoiser.down
    down[0], down[1] = down[1], down[0]


def parametrize(denoiser: Any) -> None:
    weight_norm(denoiser.up[2].read)


def unparametrize(denoiser: Any) -> None:
    remove_parametrizations(denoiser.up[2].read, "weight")


CHANGES: list[Callable[[Any], None]] = [
    wrap, rescale, merge, write, unwrap, other_memory, hook, unhook, other_parameter, other_forward, exchange,
    parametrize, unparametrize, write_by_data,
]  # fmt: skip


@pytest.fixture
def both() -> Iterator[tuple[Any, Any, Engine]]:
    """A denoiser as it is, and one that an engine runs."""
    plain, run = toy(), toy()
    with Engine(run, toy_plan(run, 2, branches=1), EngineOptions(transport="emulation", exact=True)) as engine:
        yield plain, run, engine


@pytest.mark.slow
def test_whatever_is_done_is_followed(both: tuple[Any, Any, Engine]) -> None:
    plain, run, engine = both
    trajectory = Trajectory(calls=2)
    parameters = []
    for change in CHANGES:
        change(plain)
        change(run)
        expected = trajectory.through(plain)
        assert equal(trajectory.through(engine), expected), change.__name__
        worker = engine._ranks.workers[0]
        parameters.append(len(worker.parameters))
        may_turn_back = change in (rescale, hook, unhook, other_forward)
        assert len(worker._components) <= (3 if may_turn_back else 1), "the graphs of what is past are forgotten"
        assert len(worker.mailbox._tables) <= 5
    assert parameters[-1] == parameters[4], "and so are parameters that no graph reads"


def test_in_the_middle_of_a_trajectory_exact_calls_begin_again() -> None:
    plain, run = toy(), toy()
    trajectory = Trajectory(calls=8)
    with Engine(run, toy_plan(run, 2), EngineOptions(transport="emulation")) as engine, torch.no_grad():
        for call in range(4):
            engine(**trajectory.inputs(call))
        assert (engine.stats.exact_steps, engine.stats.async_steps) == (2, 2)
        write(plain)
        write(run)
        for call in (4, 5):
            assert torch.equal(engine(**trajectory.inputs(call))[0], plain(**trajectory.inputs(call))[0])
        engine(**trajectory.inputs(6))
        assert (engine.stats.exact_steps, engine.stats.async_steps) == (4, 3)


@pytest.mark.slow
def test_what_cannot_be_followed_is_refused_until_it_is_taken_back(both: tuple[Any, Any, Engine]) -> None:
    plain, run, engine = both
    trajectory = Trajectory(calls=2)
    count = [0]

    def counting(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        count[0] += 1
        return output * count[0]

    handle = run.up[2].register_forward_hook(counting)
    for _ in range(2):  # the second call is refused as the first was
        with pytest.raises(InputError, match=r"forward hook counting: variable count\[0\] of module up\.2"):
            trajectory.through(engine)
    handle.remove()
    assert equal(trajectory.through(engine), trajectory.through(plain))
    run.train()
    with pytest.raises(InputError, match=r"training mode; call \.eval\(\)"):
        trajectory.through(engine)
    run.eval()
    assert equal(trajectory.through(engine), trajectory.through(plain))


@pytest.mark.parametrize("transport", ["emulation", "processes"])
def test_a_layer_that_is_wrapped_is_not_sent_again(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, run = toy(), toy()
    trajectory = Trajectory(calls=2)
    with Engine(run, toy_plan(run, 2), EngineOptions(transport=transport, exact=True)) as engine:
        told: list[Any] = []
        tell = engine._ranks.command
        monkeypatch.setattr(engine._ranks, "command", lambda rank, what: (told.append(what.command), tell(rank, what)))
        wrap(plain)
        wrap(run)
        assert equal(trajectory.through(engine), trajectory.through(plain))
        sent = {p.path for what in told for p in getattr(what, "parameters", ())}
        assert sent
        assert all(path.endswith(("up.weight", "down.weight")) for path in sent)
        told.clear()
        unwrap(plain)
        unwrap(run)
        assert equal(trajectory.through(engine), trajectory.through(plain))
        assert not any(getattr(what, "parameters", ()) for what in told)


def test_a_plan_fits_its_denoiser_with_wrapped_layers_and_no_other() -> None:
    plan = toy_plan(toy(), 2)
    trajectory = Trajectory(calls=2)
    wrapped = toy()
    wrap(wrapped)
    expected = trajectory.through(copy.deepcopy(wrapped))
    with Engine(wrapped, plan, EngineOptions(transport="emulation", exact=True)) as engine:
        assert equal(trajectory.through(engine), expected)
    other: Any = toy()
    del other.down[2], other.up[2]
    with pytest.raises(PlanMismatch, match="make a plan"):
        Engine(other, plan, EngineOptions(transport="emulation"))


def test_an_engine_stays_usable_after_a_call_in_the_dtype_before_a_cast() -> None:
    """The trace does not see that torch would refuse it; the unmodified denoiser would raise as well."""
    denoiser, trajectory = toy(), Trajectory(calls=2)
    with Engine(denoiser, toy_plan(denoiser, 2), EngineOptions(transport="emulation")) as engine:
        before = trajectory.through(engine)
        denoiser.bfloat16()
        with pytest.raises(InputError, match=r"x is of torch.float32 and the denoiser of torch.bfloat16: convert"):
            trajectory.through(engine)
        denoiser.float()
        assert equal(trajectory.through(engine), trajectory.through(denoiser))
        assert len(before) == 2


class Pass(nn.Module):
    """A toy denoiser's calls, of which every second one is made with two blocks skipped, as diffusers' guiders do."""

    def __init__(self, denoiser: Any, call: Callable[..., Any]) -> None:
        super().__init__()
        self.denoiser, self.call = denoiser, call

    def step(self, inputs: dict[str, Any]) -> list[torch.Tensor]:
        whole = self.call(**inputs)[0]
        for index in (1, 2):
            HookRegistry.check_if_exists_or_initialize(self.denoiser.up[index]).register_hook(Skip(), "skip")
        part = self.call(**inputs)[0]
        HookRegistry.check_if_exists_or_initialize(self.denoiser).remove_hook("skip", recurse=True)
        return [whole, part]


class Skip(ModelHook):
    def new_forward(self, _module: nn.Module, hidden: torch.Tensor, *_args: Any) -> torch.Tensor:
        return hidden


@pytest.mark.parametrize("exact", [True, False])
def test_hooks_put_on_for_every_second_call_make_two_trajectories(exact: bool, monkeypatch: Any) -> None:
    traced: list[int] = []
    trace = TracedGraphs._trace
    monkeypatch.setattr(TracedGraphs, "_trace", lambda *args, **more: (traced.append(1), trace(*args, **more))[1])
    plain, run = toy(), toy()
    trajectory = Trajectory(calls=7)
    with (
        Engine(run, toy_plan(run, 2), EngineOptions(transport="emulation", exact=exact)) as engine,
        torch.no_grad(),
    ):
        made = [Pass(run, engine).step(trajectory.inputs(call)) for call in range(7)]
        expected = [Pass(plain, plain).step(trajectory.inputs(call)) for call in range(7)]
        alike = [equal(one, other) for one, other in zip(made, expected, strict=True)]
        assert alike == [True] * 7 if exact else alike[:2] == [True] * 2
        assert len(traced) == 4, "plain, skipping, and each with the registries that the first hooks have left"
        if not exact:
            assert dict(engine.stats.exact_reasons) == {"warm-up": 4}
            assert engine.stats.async_steps == 10
            with torch.no_grad():
                run.time.weight.mul_(1.5)
                plain.time.weight.mul_(1.5)
            again = Pass(run, engine).step(trajectory.inputs(6))
            assert equal(again, Pass(plain, plain).step(trajectory.inputs(6))), "a write reaches both"
            assert len(traced) == 4


@pytest.mark.slow
def test_the_graphs_of_what_a_denoiser_was_long_ago_are_dropped() -> None:
    plain, run = toy(), toy()
    inputs = Trajectory(calls=1).inputs(0)
    with Engine(run, toy_plan(run, 2), EngineOptions(transport="emulation")) as engine, torch.no_grad():
        for scale in (*range(2, KEPT + 3), 2):
            made = []
            for denoiser, call in ((plain, plain), (run, engine)):
                handle = denoiser.up[0].register_forward_hook(partial(scaled, scale))
                made.append(call(**inputs)[0])
                handle.remove()
            assert torch.equal(*made), scale
            assert torch.equal(engine(**inputs)[0], plain(**inputs)[0])
        for worker in engine._ranks.workers:
            assert len(worker._components) == KEPT
        assert len(engine._first._distribution._preambles) == KEPT


def scaled(scale: float, _module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
    return output * scale


def test_a_foreseen_call_is_not_taken_for_one_in_another_state() -> None:
    """The order of a step's calls changes, which differ in nothing but the denoiser's hooks."""
    plain, run = toy(), toy()
    trajectory = Trajectory(calls=6)
    plan = toy_plan(run, 1, branches=2, streams=2)
    with Engine(run, plan, EngineOptions(transport="emulation")) as engine, torch.no_grad():
        for call in range(6):
            made: list[torch.Tensor] = []
            expected: list[torch.Tensor] = []
            for denoiser, through, into in ((run, engine, made), (plain, plain, expected)):
                steps = Pass(denoiser, through)
                into += steps.step(trajectory.inputs(call))
                if call == 3:
                    into += [through(**trajectory.inputs(call))[0]]
            assert equal(made, expected), call
        assert engine.stats.foreseen_calls > 0


class Attending(nn.Module):
    """Two layers, each of which attends."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = functional.scaled_dot_product_attention(layer(x), x, x)
        return x


@pytest.mark.processes
def test_ranks_compute_by_the_settings_of_torch_that_the_caller_has_made() -> None:
    denoiser = Attending().eval()
    x = torch.randn(1, 4, 65, 32, generator=torch.Generator().manual_seed(0))
    plan = compile(denoiser, {"x": x}, {"x": "latent"}, devices=2, options=PlanOptions(force=True))
    with torch.no_grad(), Engine(denoiser, plan, EngineOptions(exact=True)) as engine:
        usual = engine(x)[0]
        assert torch.equal(usual, denoiser(x))
        with sdpa_kernel(SDPBackend.MATH):
            plain = engine(x)[0]
            assert torch.equal(plain, denoiser(x))
        assert not torch.equal(plain, usual)
        assert torch.equal(engine(x)[0], usual)
