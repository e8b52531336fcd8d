"""CudaDeviceStream: what waits for what on GPUs. Whole engines on a GPU are in tests/runtime/test_gpu.py.

Without a GPU the streams are fake ones (tests/support/fake_cuda.py), which find what is out of order whatever the
timing.
Every line of the class that orders something is left out in turn, and must be missed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from partitioner.plan.plan import Plan
from runtime.devices import cuda_stream
from runtime.engine import Engine
from runtime.options import EngineOptions
from tests.support.engines import TRACES, Trajectory, equal, largest_difference, plan_of, toy, toy_plan
from tests.support.fake_cuda import FakeCuda, fake_cuda

CLOSE = 1e-4  # of values of order 1 in float32, where other kernels or another order of sums may be chosen

pytestmark = pytest.mark.usefixtures("trace_once")


class Three(nn.Module):
    """x: [2, 5, 8] latent; t: scalar; context: [2, 8] prompt. The first and last layer are component 1's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor]:
        hidden = self.first(x) + context[:, None]
        return (self.last(torch.tanh(self.middle(hidden) * (1 + t / 1000)) + hidden),)


@cache
def three() -> tuple[nn.Module, Plan]:
    torch.manual_seed(0)
    denoiser = Three().eval()
    example = {"x": torch.zeros(2, 5, 8), "t": torch.zeros(()), "context": torch.zeros(2, 8)}
    graph = TRACES.trace(denoiser, example, {"x": "latent", "t": "timestep", "context": "prompt"}, model="three")
    placed = {node.name: 0 if "middle" in node.key or "tanh" in node.key else 1 for node in graph.latent_nodes}
    return denoiser, plan_of(graph, placed, warmup=1, predictor="linear")


def calls(count: int = 4) -> Iterator[dict[str, torch.Tensor]]:
    made = torch.Generator().manual_seed(0)
    context = torch.randn(2, 8, generator=made)
    for call in range(count):
        yield {
            "x": torch.randn(2, 5, 8, generator=made),
            "t": torch.tensor(900.0 - 100 * call),
            "context": context.clone(),
        }


@cache
def emulated() -> list[torch.Tensor]:
    denoiser, plan = three()
    with torch.no_grad(), Engine(denoiser, plan, EngineOptions(transport="emulation")) as engine:
        return [engine(**inputs)[0] for inputs in calls()]


@dataclass(frozen=True)
class Place:
    """Where the ranks, the denoiser's parameters and the inputs are."""

    devices: tuple[str, str]
    held_on: str
    home: str

    def run(self, cuda: FakeCuda) -> list[torch.Tensor]:
        """A trajectory's outputs.

        The caller is on streams of its own. It makes each call's inputs just before, writes to them just after, and
        drops its outputs as soon as it has looked at them.
        """
        denoiser, plan = three()
        outputs = []
        with cuda.stream(cuda.new_stream("cuda:0")), cuda.stream(cuda.new_stream("cuda:1")):
            held = Three().eval()
            held.load_state_dict(denoiser.state_dict())
            held.to(self.held_on)
            options = EngineOptions(transport="threads", cuda_graphs=False)
            with (
                torch.no_grad(),
                Engine(held, plan, options, devices=self.devices, traced=lambda: denoiser) as engine,
            ):
                for given in calls():
                    inputs = {name: value.to(self.home).clone() for name, value in given.items()}
                    (output,) = engine(**inputs)
                    outputs.append(output.cpu())
                    inputs["x"].copy_(output)
                    del output
        return outputs


PLACES = {
    "one GPU": Place(("cuda:0", "cuda:0"), "cuda:0", "cuda:0"),
    "two GPUs": Place(("cuda:0", "cuda:1"), "cuda:0", "cuda:0"),
    "a CPU's denoiser": Place(("cuda:0", "cuda:1"), "cpu", "cpu"),
    "a reader's denoiser": Place(("cuda:0", "cuda:1"), "cuda:1", "cuda:0"),
    "a driver on a CPU": Place(("cpu", "cuda:1"), "cuda:1", "cpu"),
    "a rank on a CPU": Place(("cuda:0", "cpu"), "cuda:0", "cuda:0"),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
def test_nothing_is_out_of_order_wherever_the_denoiser_and_its_ranks_are(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = emulated()
    with fake_cuda(monkeypatch) as cuda:
        outputs = place.run(cuda)
    assert equal(outputs, expected)
    assert cuda.errors == []


SOURCE = Path(cuda_stream.__file__).read_text()
ORDERING = [
    line.strip()
    for line in SOURCE.splitlines()
    if re.search(r"\.(wait_\w+|record_stream)\(|current_stream\(tensor", line)
]


def a_parameter_of_the_readers_gpu(module: ModuleType, cuda: FakeCuda) -> None:
    """The sender, on another GPU, passes on what the caller has just written there."""
    sender, reader = (module.CudaDeviceStream(index, torch.device("cuda", index)) for index in range(2))
    with cuda.stream(cuda.new_stream("cuda:1")):
        parameter = torch.ones(2).to("cuda:1") + 1
        here, there = reader.fetch(parameter, sender.now(), sender)
    with reader.entered():
        reader.accept(here, there)
        assert (here + 1).cpu().tolist() == [3.0, 3.0]


def without(line: str) -> ModuleType:
    """The module of CudaDeviceStream as it would be without one of its lines."""
    changed = ModuleType(cuda_stream.__name__)
    exec(SOURCE.replace(line, "pass", 1), changed.__dict__)
    return changed


@pytest.mark.parametrize("line", ORDERING)
def test_every_line_that_orders_something_is_missed_where_it_is_left_out(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulated()
    changed = without(line)
    for user in ("runtime.devices.acceleration", "runtime.ranks.threads"):
        monkeypatch.setattr(f"{user}.CudaDeviceStream", changed.CudaDeviceStream)
    for run in (PLACES["two GPUs"].run, partial(a_parameter_of_the_readers_gpu, changed)):
        with fake_cuda(monkeypatch) as cuda:
            run(cuda)
        if cuda.errors:
            return
    pytest.fail("nobody misses it")


def test_a_parameter_that_the_caller_has_just_written_on_the_readers_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda(monkeypatch) as cuda:
        a_parameter_of_the_readers_gpu(cuda_stream, cuda)
    assert cuda.errors == []


@pytest.mark.gpu
@pytest.mark.processes
@pytest.mark.parametrize("devices", [["cuda:0", "cuda:0"], ["cuda:0", "cpu"], ["cpu", "cuda:0"]], ids=str)
@pytest.mark.parametrize("held_on", ["cpu", "cuda:0"])
def test_a_denoiser_that_is_on_another_device_than_a_rank(held_on: str, devices: list[str]) -> None:
    """Parameters, inputs and results go wherever they must."""
    trajectory = Trajectory()
    denoiser = toy()
    plan = toy_plan(denoiser, 2)
    with Engine(denoiser, plan, EngineOptions(transport="emulation")) as engine:
        expected = trajectory.through(engine)
    denoiser.to(held_on)
    with Engine(denoiser, plan, EngineOptions(transport="threads"), devices=devices) as engine:
        outputs = trajectory.through(engine)
    assert outputs[0].device == torch.device("cpu"), "where the inputs are"
    assert largest_difference(outputs, expected) < CLOSE
    assert next(denoiser.parameters()).device == torch.device(held_on)
