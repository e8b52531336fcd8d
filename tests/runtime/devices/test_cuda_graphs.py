"""GraphedRun: what is copied and what is shared, on a CPU that plays graphs; captures that fail, on a GPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from runtime.devices import capture
from runtime.devices.capture import CaptureFailed, GraphMemory
from runtime.devices.cuda_graphs import EAGER_CALLS, Graphed, GraphedRun
from runtime.engine import Engine
from runtime.options import EngineOptions
from runtime.transport.local import LocalMailbox
from runtime.worker import worker
from runtime.worker.segment import Segment
from tests.support.captured_graphs import captured_on_cpu
from tests.support.engines import Trajectory, equal, folded, largest_difference, toy, toy_plan

CPU = torch.device("cpu")


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    captured_on_cpu(monkeypatch)


def graphed(
    function: Callable[..., Sequence[Any]],
    *,
    fixed: Sequence[bool],
    kept: Sequence[bool] = (),
    leaves: Sequence[bool],
    memory: GraphMemory | None = None,
    obstacle: Callable[..., str | None] = lambda inputs: None,
    device: torch.device = CPU,
) -> GraphedRun:
    what = Graphed(
        function,
        "the segment",
        fixed,
        kept or [False] * len(fixed),
        leaves,
        obstacle,
        lambda error: "/where.0",
    )
    return GraphedRun(what, memory or GraphMemory(), device)


def ones(value: float, size: int = 4) -> torch.Tensor:
    return torch.full((size,), value)


def test_fixed_tensors_are_read_in_place_and_what_leaves_is_never_written_again(played: None) -> None:
    weight = torch.ones(4)
    run = graphed(lambda x, w: (x * w, [x + w, x - w]), fixed=[False, True], leaves=[True, True])
    outputs = [run(ones(n), weight) for n in range(EAGER_CALLS + 3)]
    assert run.is_settled
    for n, (product, (total, difference)) in enumerate(outputs):
        assert torch.equal(product, ones(n))
        assert torch.equal(total, ones(n + 1.0))
        assert torch.equal(difference, ones(n - 1.0))
    weight.fill_(2.0)
    assert float(run(ones(1), weight)[0][0]) == 2.0
    assert run(ones(1, size=2), weight[:2])[0].shape == (2,)
    assert not run.is_settled, "another shape has its own graph"


def test_a_kept_input_is_copied_only_when_it_is_another(played: None, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = []
    copy = torch.Tensor.copy_

    def counted(tensor: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        copied.append(source)
        return copy(tensor, source, non_blocking)

    run = graphed(lambda x, p: (x + p,), fixed=[False, False], kept=[False, True], leaves=[True])
    prompt, other = ones(10), ones(20)
    for n in range(EAGER_CALLS + 1):
        run(ones(n), prompt)
    monkeypatch.setattr(torch.Tensor, "copy_", counted)
    got = [float(run(ones(1), given)[0][0]) for given in (prompt, prompt, other, other)]
    prompt.fill_(30)
    got.append(float(run(ones(1), prompt)[0][0]))
    other.fill_(40)
    got.append(float(run(ones(1), other)[0][0]))
    other.fill_(50)
    got.append(float(run(ones(1), other)[0][0]))
    assert got == [11, 11, 21, 21, 31, 41, 51]
    assert sum(source is prompt or source is other for source in copied) == 4


def test_what_stays_in_the_rank_is_read_where_its_graph_leaves_it(played: None) -> None:
    memory = GraphMemory()
    seen: list[int] = []

    def second(hidden: torch.Tensor) -> Sequence[torch.Tensor]:
        seen.append(hidden.data_ptr())
        return (hidden * 2,)

    first = graphed(lambda x: (x + 1,), fixed=[False], leaves=[False], memory=memory)
    then = graphed(second, fixed=[False], leaves=[True], memory=memory)
    outputs = []
    for n in range(EAGER_CALLS + 3):
        (hidden,) = first(ones(n))
        outputs.append(then(hidden)[0])
    assert [float(output[0]) for output in outputs] == [2.0 * (n + 1) for n in range(EAGER_CALLS + 3)]
    assert seen[-1] == hidden.data_ptr() == seen[-2]
    elsewhere = then(ones(5))[0]
    assert float(elsewhere[0]) == 10.0, "another tensor in its place has a graph of its own"
    assert float(then(hidden)[0][0]) == 2.0 * (EAGER_CALLS + 3)


def test_what_cannot_be_captured_is_run_and_said_once(
    played: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any) -> Any:
        raise CaptureFailed("RuntimeError: not permitted", RuntimeError("not permitted"))

    monkeypatch.setattr(capture, "record", fails)
    with caplog.at_level(logging.WARNING, "runtime"):
        runs = [graphed(lambda x: (x + 1,), fixed=[False], leaves=[True]) for _ in range(2)]
        for run in runs:
            got = [float(run(ones(n))[0][0]) for n in range(EAGER_CALLS + 3)]
            assert got == [n + 1.0 for n in range(EAGER_CALLS + 3)]
            assert run.is_settled
            assert run.refusal == "RuntimeError: not permitted at node /where.0"
    (record,) = caplog.records
    assert "the segment" in record.message
    assert "not permitted at node /where.0" in record.message


def test_a_known_obstacle_is_not_tried(played: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "record", lambda *_: pytest.fail("it was captured"))
    run = graphed(lambda x: (x + 1,), fixed=[False], leaves=[True], obstacle=lambda inputs: "it waits")
    assert [float(run(ones(n))[0][0]) for n in range(6)] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert run.refusal == "it waits"


@pytest.mark.slow
@pytest.mark.usefixtures("trace_once")
@pytest.mark.parametrize(
    "options",
    [{"predictor": "linear"}, {"exact": True, "microbatches": 2}, {"transport": "threads"}],
    ids=str,
)
@pytest.mark.parametrize("copied", [False, True])
def test_an_engine_with_graphs_computes_what_it_does_without(
    options: dict[str, Any], copied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """copied: by a transport that copies what it sends."""
    plan, trajectory = toy_plan(toy(), 2, placed=folded), Trajectory(2 * EAGER_CALLS + 2)
    options = {"transport": "emulation", **options}
    with Engine(toy(), plan, EngineOptions(cuda_graphs=False, **options)) as engine:
        expected = [trajectory.through(engine) for _ in range(2)]
    captured_on_cpu(monkeypatch)
    if copied:
        deliver = LocalMailbox.deliver
        monkeypatch.setattr(LocalMailbox, "copies_sent", True)
        monkeypatch.setattr(LocalMailbox, "deliver", lambda mailbox, key, t: deliver(mailbox, key, t.clone()))
    with Engine(toy(), plan, EngineOptions(**options)) as engine:
        got = [trajectory.through(engine) for _ in range(2)]
        kept = [output.clone() for output in got[1]]
        assert trajectory.through(engine)
        assert any(own.is_settled(table) for own in engine._ranks.workers for table in range(2))
    assert all(equal(one, other) for one, other in zip(got, expected, strict=True))
    assert equal(got[1], kept), "a later replay wrote to a result"


@pytest.mark.usefixtures("trace_once")
@pytest.mark.parametrize("entered", [torch.no_grad, torch.inference_mode])
def test_ranks_see_ordinary_tensors_in_every_mode(entered: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, seen = worker.run_segment, set()

    def watched(segment: Segment, values: Any, *rest: Any) -> Any:
        seen.update(values[name].is_inference() for name in segment.reads)
        return run(segment, values, *rest)

    monkeypatch.setattr(worker, "run_segment", watched)
    with entered():
        trajectory, denoiser = Trajectory(4), toy()
        with Engine(denoiser, toy_plan(toy(), 2), EngineOptions(transport="emulation")) as engine:
            for call in range(4):
                engine(**trajectory.inputs(call))
    assert seen == {False}


GPU = torch.device("cuda", 0)


def _waits(x: torch.Tensor) -> Sequence[torch.Tensor]:
    return (x * float(x.sum()),)


def _from_the_host(x: torch.Tensor) -> Sequence[torch.Tensor]:
    return (x + torch.ones(4).to(x.device),)


def _raises_while_captured(x: torch.Tensor) -> Sequence[torch.Tensor]:
    if torch.cuda.is_current_stream_capturing():
        raise ValueError("not now")
    return (x * 4,)


@pytest.mark.gpu
@pytest.mark.parametrize("function", [_waits, _from_the_host, _raises_while_captured])
def test_a_capture_that_fails_leaves_the_gpu_usable(function: Any, caplog: pytest.LogCaptureFixture) -> None:
    memory = GraphMemory()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        before = graphed(lambda x: (x + 1,), fixed=[False], leaves=[True], memory=memory, device=GPU)
        bad = graphed(function, fixed=[False], leaves=[True], memory=memory, device=GPU)
        after = graphed(lambda x: (x * 3,), fixed=[False], leaves=[True], memory=memory, device=GPU)
        for n in range(EAGER_CALLS + 3):
            given = ones(n).to(GPU)
            assert torch.equal(before(given)[0], given + 1)
            assert torch.equal(bad(given)[0], function(given)[0])
            assert torch.equal(after(given)[0], given * 3)
        assert torch.rand(3, device=GPU).shape == (3,)
    assert bad.refusal is not None
    assert "capture_end" not in bad.refusal
    assert before.refusal is None
    assert after.refusal is None
    torch.cuda.synchronize()
    reserved = []
    for _ in range(3):
        for _ in range(8):
            block = torch.empty(32 << 20, dtype=torch.uint8, device=GPU)
            block.record_stream(stream)
            del block
        torch.cuda.synchronize()
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[2] <= reserved[0] + (64 << 20), "memory that two streams used does not come back"


@pytest.mark.gpu
@pytest.mark.processes
@pytest.mark.parametrize(
    ("transport", "entered", "compile"),
    [
        ("emulation", torch.inference_mode, False),
        ("threads", torch.inference_mode, False),
        ("threads", torch.inference_mode, True),
    ],
)
def test_graphs_and_compiled_segments_in_inference_mode(
    transport: str, entered: Any, compile: bool, caplog: pytest.LogCaptureFixture
) -> None:
    denoiser, plan, trajectory = toy().cuda(), toy_plan(toy(), 2), Trajectory(2 * EAGER_CALLS + 2)
    outputs = []
    with entered():
        for graphs in (False, None):
            options = EngineOptions(transport=transport, cuda_graphs=graphs, compile=compile)
            with Engine(denoiser, plan, options, devices=["cuda:0"] * 2) as engine:
                made = []
                for call in range(len(trajectory)):
                    inputs = {
                        name: value.cuda() if isinstance(value, torch.Tensor) else value
                        for name, value in trajectory.inputs(call).items()
                    }
                    made.append(engine(**inputs)[0].clone())
                outputs.append(made)
    assert largest_difference(*outputs) < 1e-4
    assert "cannot be captured" not in caplog.text
