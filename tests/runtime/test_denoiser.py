"""The denoiser of a pipeline: which it is, and what an engine takes over of it; in real pipelines: test_pipeline."""

from __future__ import annotations

import copy
import functools
import inspect
import io
import logging
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from runtime import parallelize
from runtime.denoiser import EngineForward, Takeover, check_free, claimed, denoiser_name, plain_denoiser
from runtime.engine import Engine
from runtime.errors import InputError
from runtime.options import EngineOptions
from tests.support.engines import ToyDenoiser, Trajectory, equal, toy, toy_plan

pytestmark = pytest.mark.usefixtures("trace_once")

Function = Callable[[torch.Tensor], torch.Tensor]


class Changed(ToyDenoiser):
    """To be given another forward, so that its trace is not a toy denoiser's."""


class WithContexts(ToyDenoiser):
    """As diffusers' transformers, it notes in which cache context it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.entered: list[str] = []

    @contextmanager
    def cache_context(self, name: str) -> Iterator[None]:
        self.entered.append(name)
        yield


@contextmanager
def taken_over(denoiser: nn.Module, plan: Any = None, exact: bool = True) -> Iterator[Engine]:
    takeover = Takeover(denoiser)
    options = EngineOptions(transport="emulation", exact=exact)
    with Engine(denoiser, plan or toy_plan(denoiser), options, traced=takeover.bare) as engine, takeover.by(engine):
        yield engine


def test_a_pipeline_has_one_denoiser() -> None:
    assert denoiser_name(SimpleNamespace(transformer=nn.Linear(1, 1), unet=None)) == "transformer"
    with pytest.raises(InputError, match="has unet and transformer; expected a diffusers pipeline with one denoiser"):
        denoiser_name(SimpleNamespace(transformer=nn.Linear(1, 1), unet=nn.Linear(1, 1)))


def test_something_without_a_denoiser_is_refused() -> None:
    class Empty:
        vae = nn.Linear(1, 1)

    with pytest.raises(InputError, match="a Empty has neither; expected a diffusers pipeline with one denoiser"):
        denoiser_name(Empty())


def test_a_denoiser_that_is_taken_over_is_itself_and_gives_what_it_gave() -> None:
    denoiser, trajectory = toy(), Trajectory(calls=3)
    before, attributes = trajectory.through(denoiser), set(vars(denoiser))
    with taken_over(denoiser) as engine:
        assert isinstance(denoiser, ToyDenoiser)
        assert inspect.signature(denoiser.forward) == inspect.signature(toy().forward)
        assert equal(trajectory.through(denoiser), before)
        assert equal(trajectory.through(denoiser.forward), before)
        assert engine.stats.steps == 6
        with pytest.raises(InputError, match="already inside a parallelize block"):
            check_free(SimpleNamespace(unet=denoiser), "unet")
    assert set(vars(denoiser)) == attributes
    assert denoiser_name(SimpleNamespace(unet=denoiser)) == "unet"
    assert equal(trajectory.through(denoiser), before)


def test_a_denoiser_that_another_block_is_about_to_take_is_refused_also_in_other_pipelines() -> None:
    denoiser = toy()
    plan = toy_plan(denoiser)
    with claimed(denoiser):  # as in another thread that traces it
        for pipe in (SimpleNamespace(unet=denoiser), SimpleNamespace(unet=toy(), unet_2=denoiser)):
            with pytest.raises(InputError, match="already inside a parallelize block, which another thread"):
                parallelize(pipe, plan, transport="emulation").__enter__()
    assert "forward" not in vars(denoiser)
    with parallelize(pipe, plan, transport="emulation", exact=True):
        assert equal(Trajectory().through(pipe.unet_2), Trajectory().through(toy()))


def test_its_own_hooks_run_once_around_the_engine() -> None:
    denoiser, trajectory = toy(), Trajectory(calls=2)
    denoiser.register_forward_pre_hook(
        lambda _module, args, given: (args, {**given, "x": 2 * given["x"]}), with_kwargs=True
    )
    denoiser.register_forward_hook(lambda _module, _args, output: (output[0] + 1,))
    before = trajectory.through(denoiser)
    with taken_over(denoiser, toy_plan(toy())):
        assert equal(trajectory.through(denoiser), before)
        later = denoiser.register_forward_hook(lambda _module, _args, output: (output[0] * 3,))
        assert equal(trajectory.through(denoiser), [3 * output for output in before])
        later.remove()
        more = Trajectory(calls=2, rows=4)  # another graph
        traced = more.through(denoiser)
    assert equal(traced, more.through(denoiser))


def test_copies_and_pickles_are_ordinary_denoisers() -> None:
    denoiser = WithContexts().eval()
    trajectory = Trajectory(calls=2)
    before = trajectory.through(denoiser)
    buffer = io.BytesIO()
    with taken_over(denoiser) as engine:
        copied = copy.deepcopy(denoiser)
        pickled = pickle.loads(pickle.dumps(denoiser))
        torch.save(denoiser, buffer)
        alias = copy.copy(denoiser)
        steps = engine.stats.steps
        for other in (copied, pickled, torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)):
            assert equal(trajectory.through(other), before)
            assert other.forward.__self__ is other
            with other.cache_context("a"):
                pass
            assert (other.entered, denoiser.entered) == (["", "a"], [""])  # the first one is the takeover's
        assert engine.stats.steps == steps
        assert equal(trajectory.through(alias), before)
        assert copy.deepcopy(denoiser.forward) is denoiser.forward, "a method alone is not copied"
    for other in (copied, pickled, alias, copy.deepcopy(copied), pickle.loads(pickle.dumps(copied))):
        assert equal(trajectory.through(other), before)


def test_what_is_put_around_forward_in_the_block_works_in_it_and_afterwards() -> None:
    denoiser, trajectory = toy(), Trajectory(calls=2)
    before = trajectory.through(denoiser)
    with taken_over(denoiser) as engine:
        inner = denoiser.forward

        @functools.wraps(inner)
        def outer(*args: Any, **kwargs: Any) -> Any:
            return (2 * inner(*args, **kwargs)[0],)

        denoiser.forward = outer  # type: ignore[method-assign]
        assert equal(trajectory.through(denoiser), [2 * output for output in before])
        assert engine.stats.steps == 2
        more = Trajectory(calls=1, rows=4)
        assert equal(more.through(denoiser), [2 * output for output in more.through(toy())])
    assert equal(trajectory.through(denoiser), [2 * output for output in before])
    denoiser.forward = inner  # type: ignore[method-assign]
    assert equal(trajectory.through(denoiser), before)
    with taken_over(denoiser):
        assert equal(trajectory.through(denoiser), before)


def test_a_forward_that_goes_past_the_engine_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    denoiser = toy()
    with taken_over(denoiser):
        denoiser.forward = MethodType(ToyDenoiser.forward, denoiser)  # type: ignore[method-assign]
    assert "ToyDenoiser.forward was replaced inside the parallelize block" in caplog.text
    assert not isinstance(denoiser.forward, EngineForward)


def test_a_forward_that_was_there_before_is_run_and_put_back() -> None:
    denoiser, trajectory = Changed().eval(), Trajectory(calls=2)

    def doubled(self: ToyDenoiser, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor, gain: float = 1.0) -> Any:
        return ToyDenoiser.forward(self, 2 * x, t, context, gain)

    own = MethodType(doubled, denoiser)
    denoiser.forward = own  # type: ignore[method-assign]
    before = trajectory.through(denoiser)
    with taken_over(denoiser, fresh_plan(denoiser)):
        assert equal(trajectory.through(denoiser), before)
        copied = copy.deepcopy(denoiser)
        assert copied.forward.__self__ is copied
    assert denoiser.forward is own
    assert equal(trajectory.through(copied), before)


def fresh_plan(denoiser: nn.Module) -> Any:
    import partitioner
    from tests.support.engines import ROLES, contiguous, plan_of

    graph = partitioner.trace(denoiser, {**Trajectory().inputs(0), "t": torch.zeros(())}, ROLES, model="toy")
    return plan_of(graph, contiguous(graph, 2), warmup=2)


@pytest.mark.slow
def test_a_call_with_other_parameters_in_their_place_has_these() -> None:
    """As averages of parameters are tried."""
    denoiser, trajectory = toy(), Trajectory(calls=2)
    average = {path: parameter.detach() * 1.1 for path, parameter in denoiser.named_parameters()}

    def call(**inputs: Any) -> Any:
        return torch.func.functional_call(denoiser, average, (), inputs)

    before, expected = trajectory.through(denoiser), trajectory.through(call)
    with taken_over(denoiser):
        for _ in range(2):
            assert equal(trajectory.through(denoiser), before)
            assert equal(trajectory.through(call), expected)
    assert equal(trajectory.through(denoiser), before)


def test_gradients_are_refused() -> None:
    denoiser, inputs = toy(), Trajectory().inputs(0)
    with taken_over(denoiser):
        inputs["x"].requires_grad_()
        with pytest.raises(InputError, match="requires gradients, which an engine does not compute"):
            denoiser(**inputs)
        with torch.no_grad():
            denoiser(**inputs)


def forward_gradient(function: Function, x: torch.Tensor) -> torch.Tensor:
    with forward_ad.dual_level():
        return function(forward_ad.make_dual(x, x))


TRANSFORMS: dict[str, Callable[[Function, torch.Tensor], object]] = {
    "jvp": lambda function, x: torch.func.jvp(function, (x,), (x,)),
    "vmap": lambda function, x: torch.func.vmap(function)(x[None]),
    "forward gradients": forward_gradient,
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own call, FutureWarning from 2.14
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_of_functions_are_refused(name: str) -> None:
    denoiser, inputs = toy(), Trajectory().inputs(0)
    x = inputs.pop("x")
    with (
        taken_over(denoiser),
        pytest.raises(InputError, match=r"a transform of torch\.func .* outside of it"),
    ):
        TRANSFORMS[name](lambda x: denoiser(x=x, **inputs)[0], x)


@pytest.mark.slow
def test_compiled_denoisers_are_looked_through(caplog: pytest.LogCaptureFixture) -> None:
    denoiser, trajectory = toy(), Trajectory(calls=2)
    before = trajectory.through(denoiser)
    compiled = torch.compile(denoiser, backend="eager")
    pipe = SimpleNamespace(unet=compiled)
    with plain_denoiser(pipe, denoiser_name(pipe)) as plain:
        assert plain is denoiser is pipe.unet
    assert pipe.unet is compiled
    denoiser.compile(backend="eager")
    denoiser.down[0].compile(backend="eager")
    own = denoiser._compiled_call_impl
    with taken_over(denoiser) as engine:
        assert equal(trajectory.through(denoiser), before)
        assert engine.stats.steps == 2
        denoiser.compile(backend="eager")
        assert equal(trajectory.through(denoiser), before)
        assert equal(trajectory.through(torch.compile(denoiser, backend="eager")), before)
        assert engine.stats.steps == 6
        denoiser._compiled_call_impl = None
        del denoiser._compiled_call_impl
    assert denoiser._compiled_call_impl is own
    assert not [record for record in caplog.records if record.name == "runtime"]


def test_a_denoiser_that_is_put_into_the_pipeline_in_the_block_stays(caplog: pytest.LogCaptureFixture) -> None:
    pipe = SimpleNamespace(unet=toy())
    other = toy()
    with plain_denoiser(pipe, "unet"):
        pipe.unet = other
    assert pipe.unet is other
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("runtime", logging.WARNING)
    assert "unet was replaced inside the parallelize block" in record.message


def test_cache_contexts_do_not_see_each_other() -> None:
    """As WanPipeline does: the conditional and the unconditional call of a step under names of their own."""
    trajectories = {"cond": Trajectory(calls=5), "uncond": Trajectory(calls=5, seed=1)}

    def run(*names: str) -> dict[str, list[torch.Tensor]]:
        denoiser = WithContexts().eval()
        denoiser.load_state_dict(toy().state_dict())
        got: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        with torch.no_grad(), taken_over(denoiser, exact=False):
            for call in range(5):
                for name in names:
                    with denoiser.cache_context(name):
                        got[name] += denoiser(**trajectories[name].inputs(call))
        return got

    together = run("cond", "uncond")
    for name, outputs in together.items():
        assert equal(outputs, run(name)[name])
        assert not equal(outputs, trajectories[name].through(toy())), "nothing was lagged"


def test_the_denoisers_own_cache_context_is_entered_too() -> None:
    denoiser, trajectory = WithContexts().eval(), Trajectory(calls=2)
    with taken_over(denoiser) as engine:
        with denoiser.cache_context("cond"):
            inside = engine._first.context_name.get()
            trajectory.through(denoiser)
        assert (inside, engine._first.context_name.get()) == ("cond", "")
        assert denoiser.entered == ["", "cond"]
        assert not hasattr(toy(), "cache_context")
    assert "cache_context" not in vars(denoiser)
