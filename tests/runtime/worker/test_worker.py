"""A worker alone: what it waits for, reads, keeps and sends, command by command."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import partitioner
from partitioner.graph.ir import TracedGraph
from runtime.errors import ComponentFailed, NonFiniteValue, RankOutOfMemory
from runtime.transport.local import LocalMailbox
from runtime.transport.mailbox import MessageKey
from runtime.worker.commands import Build, Evaluate, Load, Setup
from runtime.worker.specs import build_specs
from runtime.worker.waiting import run_to_end
from runtime.worker.worker import Worker


class Pair(nn.Module):
    """Component 0 makes ``middle``, component 1 reads it; ``c`` is the prompt of both."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0]))
        self.register_buffer("table", torch.tensor([1.0, 3.0]))

    def forward(self, x: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor]:
        middle = (x * self.weight + (t + 1)) * (c * 2)
        return (middle.log() + self.table.sum(),)


class Ranks:
    """Two workers in one thread; rank 1 has component 0, rank 0, the driver, component 1."""

    def __init__(self, **options: Any) -> None:
        self.graph: TracedGraph = partitioner.trace(
            Pair().eval(),
            {"x": torch.zeros(1), "t": torch.zeros(1), "c": torch.zeros(1)},
            {"x": "latent", "t": "timestep", "c": "prompt"},
        )
        nodes = [node.name for node in self.graph.latent_nodes]
        self.middle = nodes[2]
        placement = {name: int(index > 2) for index, name in enumerate(nodes)}
        self.specs, _ = build_specs(self.graph, placement, 2)
        boxes: list[LocalMailbox] = []
        for rank in range(2):
            boxes.append(LocalMailbox(rank, boxes, torch.device("cpu")))
        state = {**dict(Pair().named_parameters()), **dict(Pair().named_buffers())}
        self.workers = []
        for rank, component in ((0, 1), (1, 0)):
            setup = Setup(rank, component, ranks_of=(1, 0), device="cpu", **{"predictor": "linear", **options})
            worker = Worker(setup, boxes[rank])
            worker.build(Build(0, self.specs[component]))
            worker.parameters = {p.path: state[p.path].detach() for p in self.specs[component].parameters}
            self.workers.append(worker)
        self.driver, self.other = self.workers

    def give(self, rank: int, step: int, **inputs: float) -> None:
        """Put in what the driver would send."""
        for name, value in inputs.items():
            index = next(i for i, wire in enumerate(self.specs[0].wires) if wire.value == name)
            self.workers[rank].mailbox.deliver(MessageKey(0, index, 0, step), torch.tensor([value]))

    def command(self, step: int, read: int | None = None, start: bool | None = None, **options: Any) -> Evaluate:
        read = step if read is None else read
        starts = step == 0 if start is None else start
        values = {"arrivals": ((), ()), "fresh": (), "start": step if starts else None, "observe": False, **options}
        return Evaluate(table=0, context=0, step=step, reads=(read, read), **values)

    def run(self, worker: Worker, command: Evaluate) -> dict[str, torch.Tensor]:
        return run_to_end(worker.evaluate(command), worker.mailbox, timeout_s=1)


def test_it_waits_for_what_is_missing_and_goes_on_where_it_was() -> None:
    ranks = Ranks()
    work = ranks.other.evaluate(ranks.command(0, fresh=("c",)))
    with torch.no_grad():
        first = next(work)
        assert next(work) == first, "still not there"
        ranks.give(1, 0, x=3.0, t=1.0, c=0.5)
        with pytest.raises(StopIteration) as end:
            next(work)
    assert end.value.value == {}, "it makes no result"
    key = MessageKey(0, ranks.driver._components[0].wire_index[ranks.middle], 0, 0)
    assert float(ranks.driver.mailbox.take(key)) == 8.0  # (3·2 + 1 + 1) · (0.5·2)
    assert ranks.other.steps_done == 1


def test_the_driver_reads_a_message_and_returns_the_result() -> None:
    ranks = Ranks()
    ranks.give(1, 0, x=3.0, t=1.0, c=0.5)
    ranks.run(ranks.other, ranks.command(0, fresh=("c",)))
    result = ranks.run(ranks.driver, ranks.command(0))
    assert [float(value) for value in result.values()] == [pytest.approx(torch.tensor(8.0).log() + 4)]


def test_a_prompt_is_kept_until_a_fresh_one_comes() -> None:
    ranks = Ranks()
    sent = []
    for step, prompt in enumerate((0.5, None, 1.0, None)):
        ranks.give(1, step, x=3.0, t=1.0, **({} if prompt is None else {"c": prompt}))
        fresh = () if prompt is None else ("c",)
        ranks.run(ranks.other, ranks.command(step, fresh=fresh, start=step in (0, 2)))
        key = MessageKey(0, ranks.driver._components[0].wire_index[ranks.middle], 0, step)
        sent.append(float(ranks.driver.mailbox.take(key)))
    assert sent == [8.0, 8.0, 16.0, 16.0]


def test_a_lagged_read_is_the_predictors_estimate_from_all_earlier_messages() -> None:
    ranks = Ranks()
    for step, x in enumerate((3.0, 4.0, 9.0)):
        ranks.give(1, step, x=x, t=1.0, c=0.5)
        ranks.run(ranks.other, ranks.command(step, fresh=("c",), start=step == 0))
    # middle: 8, 10, 20. In the exact first step it reads 8 itself
    result = ranks.run(ranks.driver, ranks.command(0, arrivals=((0,), ()), observe=True))
    assert float(next(iter(result.values()))) == pytest.approx(float(torch.tensor(8.0).log()) + 4)
    # told of step 1 as well, linear makes 12 of them for step 2
    result = ranks.run(ranks.driver, ranks.command(2, read=1, arrivals=((1,), ()), observe=True, start=False))
    assert float(next(iter(result.values()))) == pytest.approx(float(torch.tensor(12.0).log()) + 4)
    # and for step 3, told of step 2 as well, 30
    result = ranks.run(ranks.driver, ranks.command(3, read=2, arrivals=((2,), ()), observe=True, start=False))
    assert float(next(iter(result.values()))) == pytest.approx(float(torch.tensor(30.0).log()) + 4)
    assert ranks.driver.mailbox.kept == 0


def test_a_new_trajectory_forgets_predictors_and_old_messages() -> None:
    ranks = Ranks()
    for step, x in enumerate((3.0, 4.0, 9.0)):
        ranks.give(1, step, x=x, t=1.0, c=0.5)
        ranks.run(ranks.other, ranks.command(step, fresh=("c",), start=step == 0))
    result = ranks.run(ranks.driver, ranks.command(2, arrivals=((2,), ()), observe=True, start=True))
    assert float(next(iter(result.values()))) == pytest.approx(float(torch.tensor(20.0).log()) + 4)
    result = ranks.run(ranks.driver, ranks.command(3, read=2, observe=True, start=False))
    assert float(next(iter(result.values()))) == pytest.approx(float(torch.tensor(20.0).log()) + 4), "one value is held"
    assert ranks.driver.mailbox.kept == 0


def test_a_wait_without_end_is_given_up() -> None:
    ranks = Ranks()
    with pytest.raises(TimeoutError):
        run_to_end(ranks.driver.evaluate(ranks.command(0)), ranks.driver.mailbox, timeout_s=0.01)
    assert ranks.driver.waiting_for() == (ranks.middle, 1)


def test_parameters_come_as_messages() -> None:
    ranks = Ranks()
    worker = ranks.other
    worker.parameters = {}
    load = Load(-1, ranks.specs[0].parameters, stored=(), offsets=(0,))
    work = worker.load(load)
    assert next(work) == MessageKey(-1, 0, -1, 0)
    worker.mailbox.deliver(MessageKey(-1, 0, -1, 0), torch.tensor([5.0]))
    assert list(work) == []
    assert {path: float(tensor) for path, tensor in worker.parameters.items()} == {"weight": 5.0}


def test_a_failure_names_rank_component_step_and_node() -> None:
    ranks = Ranks()
    ranks.give(1, 0, x=3.0, t=1.0, c=0.5)
    ranks.other.parameters = {"weight": torch.zeros(2, 3)}
    ranks.give(1, 0, x=3.0)
    index = next(i for i, wire in enumerate(ranks.specs[0].wires) if wire.value == "x")
    ranks.other.mailbox.deliver(MessageKey(0, index, 0, 0), torch.zeros(7))
    with pytest.raises(ComponentFailed) as caught:
        ranks.run(ranks.other, ranks.command(0, fresh=("c",)))
    error = caught.value
    assert (error.rank, error.component, error.step, error.node) == (1, 0, 0, "/mul.Tensor.0")
    assert "RuntimeError: The size of tensor a (7) must match" in str(error)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("not enough memory: 1 TB")]
)
def test_running_out_of_memory_has_an_error_of_its_own(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks()
    ranks.give(1, 0, x=3.0, t=1.0, c=0.5)

    def fail(*_values: torch.Tensor) -> None:
        raise error

    for segment in ranks.other._components[0].segments.values():
        monkeypatch.setattr(segment, "_run", fail)
        monkeypatch.setattr(segment, "failing_node", lambda _error, _values: "somewhere")
    with pytest.raises(RankOutOfMemory):
        ranks.run(ranks.other, ranks.command(0, fresh=("c",)))


@pytest.mark.parametrize("check", [True, False])
def test_values_that_are_not_finite_are_an_error_only_where_asked_for(check: bool) -> None:
    ranks = Ranks(check_finite=check)
    ranks.give(1, 0, x=-3.0, t=1.0, c=0.5)
    ranks.run(ranks.other, ranks.command(0, fresh=("c",)))
    if check:
        with pytest.raises(NonFiniteValue, match=r"rank 0 \(component 1\), step 0: .*at node /log\.0"):
            ranks.run(ranks.driver, ranks.command(0))
    else:
        assert all(value.isnan().all() for value in ranks.run(ranks.driver, ranks.command(0)).values())
