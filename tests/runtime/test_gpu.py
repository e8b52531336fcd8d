"""The engine on CUDA devices: threads as ranks, one GPU hosting several virtual devices or each rank its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import partitioner
from partitioner.plan.plan import Plan
from runtime.devices.acceleration import device_streams
from runtime.devices.cuda_graphs import EAGER_CALLS
from runtime.devices.cuda_shares import share_size, share_streams
from runtime.devices.cuda_stream import CudaDeviceStream
from runtime.engine import Engine
from runtime.errors import ComponentFailed, NonFiniteValue
from runtime.options import EngineOptions
from runtime.pipeline import parallelize
from runtime.worker.segment import Segment
from tests.support.engines import Trajectory, contiguous, equal, folded, largest_difference, plan_of, toy, toy_plan
from tests.support.pipelines import call, load, saved

pytestmark = [pytest.mark.gpu, pytest.mark.processes]

OPTIONS = EngineOptions(transport="threads")
CLOSE = 1e-4  # of values of order 1 in float32, where other kernels or another order of sums may be chosen
LATE = 20_000_000  # cycles, some 10 ms: much longer than a toy's step


def on_gpu(trajectory: Trajectory) -> Trajectory:
    trajectory.latents = [latent.cuda() for latent in trajectory.latents]
    trajectory.timesteps = [timestep.cuda() for timestep in trajectory.timesteps]
    trajectory.context = trajectory.context.cuda()
    return trajectory


def through(denoiser: nn.Module, plan: Plan, trajectory: Trajectory, **options: Any) -> list[torch.Tensor]:
    """One trajectory through an engine of its own, on the first GPU; clones, so that a late write would show."""
    with Engine(denoiser, plan, EngineOptions(**options), devices=["cuda:0"] * plan.ranks) as engine:
        return [output.clone() for output in trajectory.through(engine)]


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other run of a segment keeps its stream busy first; what does not wait for it reads something else."""
    run = Segment.__call__
    count = iter(range(1_000_000))

    def late(segment: Segment, values: Any) -> Any:
        if next(count) % 2 == 0:
            torch.cuda._sleep(LATE)
        return run(segment, values)

    monkeypatch.setattr(Segment, "__call__", late)


@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("mode", ["exact", "async"])
def test_threads_on_one_gpu_equal_emulation(mode: str, branches: int) -> None:
    denoiser = toy().cuda()
    plan = toy_plan(toy(), 2, branches=branches)
    trajectory = on_gpu(Trajectory())
    emulated, threads = (
        through(denoiser, plan, trajectory, transport=transport, exact=mode == "exact")
        for transport in ("emulation", "threads")
    )
    assert threads[0].is_cuda
    assert equal(emulated, threads)
    if mode == "exact":
        assert largest_difference(threads, trajectory.through(denoiser)) < CLOSE


@pytest.mark.parametrize("predictor", ["hold", "linear", "adaptive"])
@pytest.mark.parametrize("placed", [contiguous, folded])
def test_no_rank_reads_what_is_not_there_yet(placed: Callable[..., Any], predictor: str, delays: None) -> None:
    denoiser = toy().cuda()
    plan = toy_plan(toy(), 3, placed=placed, predictor=predictor)
    trajectory = on_gpu(Trajectory(calls=8))
    expected = through(denoiser, plan, trajectory, transport="emulation", cuda_graphs=False)
    assert equal(through(denoiser, plan, trajectory, transport="threads"), expected)


class Wide(nn.Module):
    """Blocks on tensors of 8 MB, which torch's allocator hands out again soon after they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(1024, 1024) for _ in range(6))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor]:
        for block in self.blocks:
            x = x + torch.tanh(block(x + t / 1000))
        return (x,)


def wide() -> tuple[nn.Module, Plan]:
    torch.manual_seed(0)
    denoiser = Wide().eval()
    example = {"x": torch.zeros(2, 1024, 1024), "t": torch.zeros(())}
    graph = partitioner.trace(denoiser, example, {"x": "latent", "t": "timestep"})
    return denoiser.cuda(), plan_of(graph, contiguous(graph, 3), warmup=2)


def wide_steps(call: Callable[..., Any], steps: int = 12) -> list[torch.Tensor]:
    """Sums of the outputs' sizes. Between calls the caller frees memory and overwrites what it gets again."""
    generator = torch.Generator("cuda").manual_seed(0)
    latent = torch.randn(2, 1024, 1024, generator=generator, device="cuda")
    sums = []
    with torch.no_grad():
        for step in range(steps):
            (output,) = call(x=latent, t=torch.tensor(900.0 - 10 * step, device="cuda"))
            latent = 0.9 * latent + 0.1 * torch.tanh(output)
            sums.append(output.abs().double().sum())
            del output
            for _ in range(3):
                torch.full((2, 1024, 1024), float("nan"), device="cuda")
    return sums


@pytest.mark.parametrize("cuda_graphs", [False, None])
def test_memory_is_not_reused_while_another_rank_reads_it(cuda_graphs: bool | None, delays: None) -> None:
    denoiser, plan = wide()
    sums = []
    for options in (
        EngineOptions(transport="emulation", cuda_graphs=False),
        EngineOptions(transport="threads", cuda_graphs=cuda_graphs),
    ):
        with Engine(denoiser, plan, options, devices=["cuda:0"] * 3) as engine:
            sums.append(torch.stack(wide_steps(engine)))
    assert torch.allclose(sums[0], sums[1], rtol=1e-5)
    assert not sums[1].isnan().any()


def test_the_callers_stream_is_waited_for_and_waits() -> None:
    denoiser = toy().cuda()
    plan = toy_plan(toy(), 2)
    expected = through(denoiser, plan, on_gpu(Trajectory()), transport="emulation", cuda_graphs=False)
    trajectory = on_gpu(Trajectory())
    side = torch.cuda.Stream()
    outputs = []
    with Engine(denoiser, plan, OPTIONS, devices=["cuda:0"] * 2) as engine, torch.cuda.stream(side):
        for call_ in range(len(trajectory)):
            inputs = trajectory.inputs(call_)
            late = torch.full_like(inputs["x"], float("nan"))
            torch.cuda._sleep(LATE)
            late.copy_(inputs["x"])
            (output,) = engine(**{**inputs, "x": late})
            late.fill_(float("nan"))  # after the engine has read it, in the order of the caller's stream
            outputs.append(output.clone())
            assert torch.cuda.current_stream() == side
    side.synchronize()
    assert equal(outputs, expected)


@pytest.mark.parametrize("options", [{}, {"green_contexts": True}, {"compile": True}], ids=str)
def test_replayed_graphs_give_what_eager_segments_give(options: dict[str, bool]) -> None:
    denoiser = toy().cuda()
    plan = toy_plan(toy(), 2, predictor="adaptive")
    trajectory = on_gpu(Trajectory(calls=3 * EAGER_CALLS))
    expected = through(denoiser, plan, trajectory, transport="emulation", cuda_graphs=False)
    outputs = through(denoiser, plan, trajectory, transport="threads", cuda_graphs=True, **options)
    assert largest_difference(outputs, expected) < CLOSE


def test_graphs_are_captured_and_what_they_made_stays() -> None:
    denoiser = toy().cuda()
    plan = toy_plan(toy(), 2)
    trajectory = on_gpu(Trajectory(calls=4 * EAGER_CALLS))
    options = EngineOptions(transport="threads", cuda_graphs=True)
    with Engine(denoiser, plan, options, devices=["cuda:0"] * 2) as engine:
        trajectory.through(engine)
        workers = [worker for own in engine._ranks._workers for worker in own]  # type: ignore[attr-defined]
        assert all(worker.is_settled(0) for worker in workers)
        outputs = trajectory.through(engine)
        kept = [output.clone() for output in outputs]
        again = trajectory.through(engine)
    assert equal(outputs, kept), "a later replay wrote to a result"
    assert equal(again, kept)


def test_emulation_replays_graphs_too() -> None:
    denoiser = toy().cuda()
    plan = toy_plan(toy(), 2)
    trajectory = on_gpu(Trajectory(calls=3 * EAGER_CALLS))
    expected = through(denoiser, plan, trajectory, transport="emulation", cuda_graphs=False)
    outputs = through(denoiser, plan, trajectory, transport="emulation", cuda_graphs=True)
    assert largest_difference(outputs, expected) < CLOSE


def test_compiled_segments_on_a_gpu() -> None:
    denoiser = toy().cuda()
    plan = toy_plan(toy(), 2)
    trajectory = on_gpu(Trajectory())
    expected = through(denoiser, plan, trajectory, transport="emulation", cuda_graphs=False)
    assert largest_difference(through(denoiser, plan, trajectory, transport="threads", compile=True), expected) < CLOSE


def test_shares_of_a_gpu_are_disjoint_by_their_sizes_and_made_once() -> None:
    whole = torch.cuda.get_device_properties(0).multi_processor_count
    for shares in (2, 4):
        assert 0 < shares * share_size(0, shares) <= whole
        streams = share_streams(0, shares)
        assert len({stream.cuda_stream for stream in streams}) == shares
        assert share_streams(0, shares) is streams
    with torch.cuda.stream(share_streams(0, 2)[1]):
        product = torch.ones(64, 64, device="cuda") @ torch.ones(64, 64, device="cuda")
    torch.cuda.synchronize()
    assert float(product[0, 0]) == 64.0


def test_shares_work_at_the_same_time() -> None:
    """Each share's stream waits for a moment that the other's work reaches only if both are under way together."""
    first, second = share_streams(0, 2)
    begun, ended = [], []
    for stream in (first, second):
        with torch.cuda.stream(stream):
            begun.append(torch.cuda.Event(enable_timing=True))
            begun[-1].record()
            torch.cuda._sleep(10 * LATE)
            ended.append(torch.cuda.Event(enable_timing=True))
            ended[-1].record()
    torch.cuda.synchronize()
    assert begun[1].elapsed_time(ended[0]) > 0, "the second began before the first ended"


@pytest.mark.parametrize("branches", [1, 2])
def test_ranks_on_shares_of_one_gpu_equal_emulation(branches: int) -> None:
    denoiser = toy().cuda()
    plan = toy_plan(toy(), 2, branches=branches)
    trajectory = on_gpu(Trajectory())
    expected = through(denoiser, plan, trajectory, transport="emulation", cuda_graphs=False)
    outputs = through(denoiser, plan, trajectory, transport="threads", green_contexts=True)
    assert largest_difference(outputs, expected) < CLOSE


def test_every_rank_has_streams_of_its_own() -> None:
    streams = device_streams(["cuda:0", "cuda", "cpu"])
    handles = {stream.compute.cuda_stream for stream in streams if isinstance(stream, CudaDeviceStream)}
    assert len(handles) == 2
    assert torch.cuda.default_stream().cuda_stream not in handles
    seen = []
    thread = threading.Thread(target=lambda: seen.append(_current_in(streams[0])))
    thread.start()
    thread.join()
    assert seen == [streams[0].compute]  # type: ignore[attr-defined]
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


def _current_in(stream: Any) -> torch.cuda.Stream:
    with stream.entered():
        return torch.cuda.current_stream()


@pytest.mark.parametrize("options", [{}, {"cuda_graphs": True}, {"compile": True}], ids=str)
def test_nan_is_found_and_its_node_named(options: dict[str, bool]) -> None:
    trajectory = on_gpu(Trajectory(calls=2 * EAGER_CALLS))
    trajectory.latents[-1] = torch.full_like(trajectory.latents[-1], float("inf"))
    options |= {"check_finite": True, "exact": True}  # exact: nobody goes on with what was made before
    with pytest.raises(NonFiniteValue) as caught:
        through(toy().cuda(), toy_plan(toy(), 2), trajectory, transport="threads", **options)
    assert caught.value.step == 2 * EAGER_CALLS - 1
    assert caught.value.node is not None


def test_a_failing_node_on_a_gpu_is_named_and_the_next_engine_works(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser, plan, trajectory = toy().cuda(), toy_plan(toy(), 2), on_gpu(Trajectory())
    run = Segment.__call__

    def too_narrow(segment: Segment, values: Any) -> Any:
        if threading.current_thread().name == "rank 1":
            values = {name: value[..., :3] if value.dim() == 3 else value for name, value in values.items()}
        return run(segment, values)

    monkeypatch.setattr(Segment, "__call__", too_narrow)
    with pytest.raises(ComponentFailed) as caught:
        through(denoiser, plan, trajectory, transport="threads")
    assert (caught.value.rank, caught.value.node is not None) == (1, True)
    monkeypatch.undo()
    assert len(through(denoiser, plan, trajectory, transport="threads")) == len(trajectory)


def test_parameters_are_shared_with_the_denoiser() -> None:
    denoiser, plan = wide()
    size = sum(parameter.nbytes for parameter in denoiser.parameters())
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    with Engine(denoiser, plan, OPTIONS, devices=["cuda:0"] * 3) as engine:
        assert torch.cuda.memory_allocated() - before < size / 2
        held = sum(report.parameter_bytes for report in engine.stats.ranks)
        assert size <= held < 1.02 * size + 1024


def test_ranks_on_a_gpu_and_a_cpu() -> None:
    denoiser = toy().cuda()
    plan = toy_plan(toy(), 2)
    trajectory = on_gpu(Trajectory())
    expected = through(denoiser, plan, trajectory, transport="emulation", cuda_graphs=False)
    with Engine(denoiser, plan, OPTIONS, devices=["cuda:0", "cpu"]) as engine:
        assert largest_difference(trajectory.through(engine), expected) < CLOSE


@pytest.mark.parametrize("options", [{}, {"cuda_graphs": True}], ids=str)
def test_ranks_that_are_processes_share_a_gpu(options: dict[str, bool]) -> None:
    denoiser = toy().cuda()
    plan = toy_plan(toy(), 2)
    trajectory = on_gpu(Trajectory(calls=2 * EAGER_CALLS))
    expected = through(denoiser, plan, trajectory, transport="emulation", cuda_graphs=False)
    outputs = through(denoiser, plan, trajectory, transport="processes", **options)
    assert outputs[0].is_cuda
    assert largest_difference(outputs, expected) < CLOSE


@pytest.mark.parametrize("options", [{}, {"cuda_graphs": True}], ids=str)
def test_ranks_on_gpus_of_their_own(options: dict[str, bool], delays: None) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    denoiser = toy().cuda()
    plan = toy_plan(toy(), 2)
    trajectory = on_gpu(Trajectory(calls=2 * EAGER_CALLS))
    expected = through(denoiser, plan, trajectory, transport="emulation", cuda_graphs=False)
    with Engine(denoiser, plan, EngineOptions(transport="threads", **options), devices=["cuda:0", "cuda:1"]) as engine:
        assert largest_difference(trajectory.through(engine), expected) < CLOSE


@pytest.mark.parametrize("options", [{}, {"cuda_graphs": True, "green_contexts": True}], ids=str)
def test_a_pipeline_on_a_gpu(options: dict[str, bool], tmp_path: Path) -> None:
    pipe = load(saved("stable_diffusion", tmp_path)).to("cuda")
    expected = call(pipe)
    with parallelize(pipe, devices=["cuda:0", "cuda:0"], exact=True, **options) as engine:
        assert engine.plan.ranks == 2
        for _ in range(2):
            assert float((call(pipe) - expected).abs().max()) < 1e-3
