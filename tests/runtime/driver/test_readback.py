"""In a steady step nothing waits for the device: values are looked at one call later, and decisions are taken then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from partitioner.graph.torch_private.dispatch import TorchDispatchMode
from runtime.devices.cuda_graphs import EAGER_CALLS
from runtime.driver import latents_ahead, prompt_inputs, readback, streams, timestep_reader
from runtime.driver.readback import Readback, read
from runtime.engine import Engine
from runtime.options import EngineOptions
from tests.support.engines import Trajectory, equal, toy, toy_plan
from tests.support.schedulers import DETERMINISTIC, scheduler_of

WAITING = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "item")


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators for which the host would wait, were their tensors on a GPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in WAITING:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the driver treat tensors as it does those of a GPU."""
    for module in (latents_ahead, prompt_inputs, streams, timestep_reader):
        monkeypatch.setattr(module, "is_late", lambda tensor: True)


def steps(
    engine: Engine, scheduler: Any, passed: Any = lambda t: t, seed: int = 0
) -> Iterator[tuple[torch.Tensor, dict[str, int]]]:
    """A loop of the user's own: of each call the output, and the operators that wait."""
    made = torch.Generator().manual_seed(seed)
    latent, context = torch.randn(2, 5, 8, generator=made), torch.randn(2, 6, generator=made)
    for timestep in scheduler.timesteps:
        given = passed(timestep)
        with torch.no_grad(), Waits() as waits:
            (output,) = engine(x=latent, t=given, context=context)
        yield output, dict(waits.found)
        latent = scheduler.step(output, timestep, latent)[0]


@pytest.mark.slow
@pytest.mark.usefixtures("trace_once", "late")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("DDIMScheduler", {"mode": "async"}),
        ("DDIMScheduler", {"mode": "lookahead"}),
        ("DDIMScheduler", {"exact": True}),
        ("FlowMatchEulerDiscreteScheduler", {"mode": "async"}),
    ],
)
def test_no_steady_step_waits(name: str, options: dict[str, Any]) -> None:
    computed = name.startswith("Flow")
    scheduler = scheduler_of(name, {} if computed else DETERMINISTIC[name], 10)
    options = EngineOptions(transport="emulation", **options)
    with Engine(toy(), toy_plan(toy(), 2), options, scheduler=lambda: scheduler) as engine:
        waits = [found for _, found in steps(engine, scheduler, (lambda t: t / 1000) if computed else lambda t: t)]
    assert waits[3:] == [{}] * 7, waits


@pytest.mark.usefixtures("trace_once")
def test_late_values_change_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for late in (False, True):
        if late:
            for module in (latents_ahead, prompt_inputs, streams, timestep_reader):
                monkeypatch.setattr(module, "is_late", lambda tensor: True)
        scheduler = scheduler_of("DDIMScheduler", DETERMINISTIC["DDIMScheduler"], 8)
        options = EngineOptions(transport="emulation", mode="async")
        with Engine(toy(), toy_plan(toy(), 2), options, scheduler=lambda: scheduler) as engine:  # noqa: B023
            results.append([output for output, _ in steps(engine, scheduler)])
            assert engine.stats.async_steps == 6
    assert equal(*results)


@pytest.mark.usefixtures("trace_once", "late")
def test_a_latent_of_another_trajectory_is_noticed_one_call_later() -> None:
    trajectory, other = Trajectory(9), Trajectory(9, seed=5)
    timesteps = torch.tensor([900.0 - 100 * call for call in range(9)])
    scheduler = SimpleNamespace(timesteps=timesteps)
    trajectory.latents[5:] = other.latents[5:]
    options = EngineOptions(transport="emulation", mode="async")
    with Engine(toy(), toy_plan(toy(), 2), options, scheduler=lambda: scheduler) as engine:
        for call in range(9):
            inputs = trajectory.inputs(call)
            with torch.no_grad():
                (output,) = engine(**{**inputs, "t": timesteps[call]})
            if call in (6, 7):
                assert torch.equal(output, toy()(**inputs)[0]), "the warm-up of another trajectory"
        assert engine.stats.exact_steps == 4


def test_values_are_those_of_the_time_when_they_were_asked_for() -> None:
    tensor = torch.ones(2, dtype=torch.float64)
    readback = Readback(tensor)
    tensor.zero_()
    assert readback.values().tolist() == [1.0, 1.0]


@pytest.mark.parametrize("late", [False, True])
def test_values_of_several_tensors_keep_their_shapes(late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readback, "is_late", lambda tensor: late)
    tensors = [torch.rand(2, 1, 3), torch.tensor([[4, 5]]), torch.rand(3, dtype=torch.bfloat16, requires_grad=True)]
    for values, tensor in zip(read(tensors), tensors, strict=True):
        assert values.dtype == "float64"
        assert values.tolist() == tensor.tolist()


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("transport", "mode"), [("emulation", "exact"), ("threads", "async"), ("threads", "lookahead")]
)
def test_no_steady_step_waits_for_a_gpu(transport: str, mode: str) -> None:
    calls = 2 * EAGER_CALLS + 6
    scheduler = scheduler_of("DDIMScheduler", DETERMINISTIC["DDIMScheduler"], calls)
    scheduler.set_timesteps(calls, device="cuda")
    latent, context = torch.randn(2, 5, 8, device="cuda"), torch.randn(2, 6, device="cuda")
    levels = scheduler.alphas_cumprod[scheduler.timesteps.cpu()].tolist()
    options = EngineOptions(transport=transport, exact=mode == "exact", mode=None if mode == "exact" else mode)
    plan = toy_plan(toy(), 2)
    with Engine(toy().cuda(), plan, options, devices=["cuda:0"] * 2, scheduler=lambda: scheduler) as engine:
        for call, timestep in enumerate(scheduler.timesteps):
            try:
                torch.cuda.set_sync_debug_mode("error" if call >= 2 * EAGER_CALLS else "default")
                with torch.no_grad():
                    (output,) = engine(x=latent, t=timestep, context=context)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            now, after = levels[call], levels[call + 1] if call + 1 < calls else 1.0
            clean = (latent - (1 - now) ** 0.5 * output) / now**0.5
            latent = after**0.5 * clean + (1 - after) ** 0.5 * output
        assert engine.stats.steps == calls


@pytest.mark.gpu
def test_values_come_from_a_gpu_without_waiting() -> None:
    tensor = torch.ones(3, device="cuda", dtype=torch.bfloat16)
    assert Readback(tensor * 2).values().tolist() == [2.0, 2.0, 2.0]  # loads the kernels and pins memory, which wait
    tensor.zero_().add_(1)
    torch.cuda.synchronize()
    torch.cuda._sleep(1_000_000_000)
    torch.cuda.set_sync_debug_mode("error")
    try:
        readback = Readback(tensor * 2)
        tensor.zero_()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not torch.cuda.current_stream().query(), "it has waited"
    assert readback.values().tolist() == [2.0, 2.0, 2.0]
