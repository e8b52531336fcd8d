"""CallReader: which calls of the denoiser an engine takes, and how it refuses the others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from partitioner.graph.arguments import flatten_arguments
from partitioner.graph.export import trace
from partitioner.graph.nesting import nest_arguments
from partitioner.plan.plan import Plan
from runtime.engine import Engine
from runtime.errors import InputError
from runtime.options import EngineOptions
from tests.support.engines import ROLES as TOY_ROLES
from tests.support.engines import WIDTH, Trajectory, contiguous, equal, plan_of, reference, toy_plan
from tests.support.toy_plans import DENOISER

pytestmark = pytest.mark.usefixtures("trace_once")


@pytest.fixture(scope="module")
def emulated() -> Iterator[Engine]:
    with Engine(DENOISER, toy_plan(DENOISER), EngineOptions(transport="emulation")) as engine:
        yield engine


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": None}, "cannot be traced for this call .*It differs from the plan's calls: context is missing"),
        ({"x": None}, "the noisy sample, x, is missing"),
        ({"mask": torch.zeros(2)}, "cannot be called like this: .*unexpected keyword argument 'mask'"),
        ({"x": torch.zeros(5, WIDTH)}, r"x has 2 dimensions \(\[5, 8\]\), the plan has 3"),
        ({"t": torch.zeros(2)}, r"cannot be traced for this call .*t is \[2\], in the plan \[\]"),
        (
            {"context": torch.zeros(2, 6).long()},
            r"context is of torch.int64, expected torch.float32: convert it with \.to",
        ),
        ({"gain": object()}, "gain is a builtins.object"),
        ({"x": torch.zeros(2, 5, 9)}, r"cannot be traced for this call .*x is \[2, 5, 9\], in the plan \[2, 5, 8\]"),
    ],
)
def test_a_call_that_does_not_fit_is_refused_in_words(emulated: Engine, change: dict[str, Any], message: str) -> None:
    arguments = {**Trajectory().inputs(0), **change}
    with pytest.raises(InputError, match=message):
        emulated(**arguments)
    assert equal(Trajectory(calls=2).through(emulated), Trajectory(calls=2).through(DENOISER))


def test_positional_arguments_are_those_of_the_denoiser(emulated: Engine) -> None:
    inputs = Trajectory().inputs(0)
    with torch.no_grad():
        assert torch.equal(emulated(*inputs.values())[0], DENOISER(**inputs)[0])


def test_a_call_under_autocast_is_refused_for_ranks_would_not_follow_it(emulated: Engine) -> None:
    inputs = Trajectory().inputs(0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), pytest.raises(InputError, match="autocast is on for"):
        emulated(**inputs)
    with torch.no_grad():
        assert torch.equal(emulated(**inputs)[0], DENOISER(**inputs)[0])


class Controlled(nn.Module):
    """A denoiser that takes what those of diffusers take besides: residuals from elsewhere, layers to skip, a mask."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.context = nn.Linear(6, WIDTH)

    def forward(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        context: torch.Tensor,
        residuals: tuple[torch.Tensor, ...] | None = None,
        skip: list[int] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> tuple[torch.Tensor]:
        hidden = x * (1 + t / 1000) + self.context(context)[:, None]
        for index, layer in enumerate(self.layers):
            if skip is not None and index in skip:
                continue
            hidden = hidden + torch.tanh(layer(hidden))
            if residuals is not None:
                assert isinstance(residuals, tuple)
                hidden = hidden + residuals[index % len(residuals)]
        for mask in (extra or {}).get("masks", []):
            hidden = hidden * mask
        return (hidden,)


CONTROLLED = Controlled().eval()
ROLES = {**TOY_ROLES, "residuals": "step"}


def controlled_plan(rows: int = 2, **options: Any) -> Plan:
    example = {"x": torch.zeros(rows, 5, WIDTH), "t": torch.zeros(()), "context": torch.zeros(rows, 6)}
    graph = trace(CONTROLLED, {**example, **options.pop("given", {})}, ROLES, model="controlled")
    return plan_of(graph, contiguous(graph, 2), warmup=2, **options)


def residuals(call: int, rows: int = 2) -> tuple[torch.Tensor, ...]:
    made = torch.Generator().manual_seed(call)
    return tuple(torch.randn(rows, 5, WIDTH, generator=made) for _ in range(2))


def parts(arguments: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """What each branch is given of a call with 2 rows."""
    flat = flatten_arguments(arguments)
    split = {path: tensor.chunk(count) for path, tensor in flat.tensors.items() if tensor.shape[:1] == (2,)}
    rows = [{path: split[path][i] if path in split else value for path, value in flat.values.items()}
            for i in range(count)]  # fmt: skip
    return [nest_arguments(values, flat.containers) for values in rows]


@pytest.mark.parametrize("branches", [1, 2])
def test_arguments_that_the_plan_does_not_know_keep_their_structure_and_are_taken(branches: int) -> None:
    trajectory = Trajectory(calls=4)
    calls: list[dict[str, Any]] = [
        {},
        {"skip": [1]},
        {"skip": (1, 2)},
        {"residuals": residuals(3), "extra": {"masks": [torch.rand(1, 5, 1)], "scale": None}},
    ]
    plan = controlled_plan(2 // branches, branches=branches)
    with Engine(CONTROLLED, plan, EngineOptions(transport="emulation", exact=True)) as engine, torch.no_grad():
        for call, more in enumerate(calls):
            arguments = {**trajectory.inputs(call), **more}
            expected = torch.cat([CONTROLLED(**part)[0] for part in parts(arguments, branches)])
            assert torch.equal(engine(**arguments)[0], expected)
            assert more == {} or not torch.equal(CONTROLLED(**trajectory.inputs(call))[0], expected)


def test_a_plan_for_such_calls_has_their_structure() -> None:
    given = {"residuals": residuals(0), "skip": [1]}
    plan = Plan.parse(json.loads(controlled_plan(given=given, mode="lookahead").canonical))
    assert [(item.path, item.role) for item in plan.inputs[3:]] == [("residuals.0", "step"), ("residuals.1", "step")]
    arguments = {**Trajectory().inputs(0), **given}
    with Engine(CONTROLLED, plan, EngineOptions(transport="emulation")) as engine, torch.no_grad():
        assert torch.equal(engine(**arguments)[0], CONTROLLED(**arguments)[0])
        assert len(engine._first._graphs._graphs) == 1  # the planned one: nothing was traced for this call


@pytest.mark.parametrize("mode", ["async", "lookahead"])
def test_what_comes_anew_at_every_step_is_never_lagged_and_ends_look_ahead(
    mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In async mode all is as in the naive reference, whose inputs are those of the call."""
    trajectory, scheduler = Trajectory(calls=6), DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(6)
    trajectory.timesteps = list(scheduler.timesteps)
    plain = trajectory.inputs
    trajectory.inputs = lambda call: {  # type: ignore[method-assign]
        **plain(call), **{f"residuals.{i}": tensor for i, tensor in enumerate(residuals(call))}
    }  # fmt: skip
    given = trace(CONTROLLED, {**plain(0), "residuals": residuals(0)}, ROLES)
    plan = controlled_plan(mode=mode)
    expected = reference(CONTROLLED, given, plan.place(given, same_denoiser=True), trajectory, warmup=2)
    with Engine(
        CONTROLLED, plan, EngineOptions(transport="emulation", quality="off"), scheduler=lambda: scheduler
    ) as engine:
        for _ in range(2):
            got = [engine(**plain(call), residuals=residuals(call))[0] for call in range(6)]
            assert equal(got, expected)
        assert engine.stats.async_steps == 8
    warned = [record.getMessage() for record in caplog.records if record.name == "runtime"]
    assert warned == [] if mode == "async" else len(warned) == 1
    if mode == "lookahead":
        assert "residuals.0 and 1 more anew at every step. The trajectory runs in async mode" in warned[0]


def test_rows_that_cannot_be_told_apart_are_run_by_one_branch() -> None:
    arguments = {**Trajectory().inputs(0), "extra": {"masks": [torch.rand(2, 5, 1)[:, :, 0].reshape(5, 2)[:, :1]]}}
    plan = controlled_plan(1, branches=2)
    with Engine(CONTROLLED, plan, EngineOptions(transport="emulation", exact=True)) as engine, torch.no_grad():
        assert torch.equal(engine(**arguments)[0], CONTROLLED(**arguments)[0])
        assert [rank.steps for rank in engine.stats.ranks] == [1, 1, 0, 0]


@pytest.mark.parametrize("transport", ["emulation", "threads", pytest.param("processes", marks=pytest.mark.processes)])
def test_a_latent_that_lies_channels_last_is_a_call_of_its_own(transport: str) -> None:
    """As that of an encoded image does; convolutions round differently for it, whatever a trace says of layouts."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(4, 32, 3), nn.GroupNorm(4, 32), nn.SiLU(), nn.Conv2d(32, 32, 3), nn.GroupNorm(4, 32), nn.SiLU(),
        nn.Conv2d(32, 4, 3),
    ).eval()  # fmt: skip
    latent = torch.randn(2, 4, 16, 16)
    other = latent.to(memory_format=torch.channels_last)
    graph = trace(module, {"input": latent}, {"input": "latent"})
    plan = plan_of(graph, contiguous(graph, 4), warmup=2)
    with Engine(module, plan, EngineOptions(transport=transport, exact=True)) as engine, torch.no_grad():
        for given in (latent, other, latent):
            made, expected = engine(given)[0], module(given)
            assert torch.equal(made, expected)
            assert made.stride() == expected.stride()
