"""ChangeFollower: when a denoiser is looked at, and that whoever looks later gets what he gets who looks first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import pytest
import torch

from runtime.driver.change_follower import CALM, ChangeFollower, LookFirst
from runtime.driver.denoiser_changes import DenoiserChanges
from runtime.driver.dispatch import Dispatcher
from runtime.driver.traced_graphs import TracedGraphs
from runtime.engine import Engine
from runtime.errors import InputError
from runtime.options import EngineOptions
from runtime.ranks.base import DenoiserRanks
from runtime.worker.commands import Evaluate
from runtime.worker.worker import Worker
from tests.support.engines import WIDTH, ToyDenoiser, Trajectory, equal, toy, toy_plan
from tests.support.schedulers import DETERMINISTIC, scheduler_of

TRANSPORTS = ["threads", pytest.param("processes", marks=pytest.mark.processes)]
STEPS = CALM + 4
EXACT, ASYNC, LOOKAHEAD = {"exact": True}, {"mode": "async"}, {"mode": "lookahead", "quality": 30.0}
Edit = Callable[[Any], object]  # of a denoiser


class Choosing(ToyDenoiser):
    """A toy that takes some channels of more than there are, by numbers that are a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.more = torch.nn.Linear(WIDTH, WIDTH)
        self.register_buffer("chosen", torch.arange(WIDTH))

    def forward(self, x: torch.Tensor, t: torch.Tensor | float, context: torch.Tensor, gain: float = 1.0) -> Any:
        return super().forward(self.more(x)[..., self.chosen], t, context, gain)

    def widen(self) -> None:
        """Have twice as many channels to choose of, and the latter half chosen."""
        with torch.no_grad():
            self.more = torch.nn.Linear(WIDTH, 2 * WIDTH)
            for parameter in self.more.parameters():
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view(parameter.shape))
            self.chosen += WIDTH


def doubled(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
    return output * 2


def write(denoiser: Any) -> None:
    with torch.no_grad():
        denoiser.up[1].read.weight.mul_(1.5)


def other_memory(denoiser: Any) -> None:
    denoiser.down[2].write.weight.data = denoiser.down[2].write.weight.data.flip(0).contiguous()


def hook(denoiser: Any) -> None:
    denoiser.up[0].register_forward_hook(doubled)


def unhook(denoiser: Any) -> None:
    denoiser.up[0]._forward_hooks.clear()


def exchange(denoiser: Any) -> None:
    denoiser.down[0], denoiser.down[1] = denoiser.down[1], denoiser.down[0]


def train_no_more(denoiser: Any) -> None:
    denoiser.requires_grad_(False)


def count(denoiser: Any) -> None:
    """Nothing that a forward reads."""
    denoiser.seen = getattr(denoiser, "seen", 0) + 1


EDITS = [other_memory, write, hook, exchange]


@pytest.fixture
def looks_first(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Has every denoiser be looked at before each call from now on."""
    return lambda: monkeypatch.setattr(ChangeFollower, "may_look_later", False)


def generation(
    call: Callable[..., Any], scheduler: Any, before: Callable[[int], object], prompts: int = 1
) -> list[torch.Tensor]:
    """What each call of a generation gives. before: what is done before each step. prompts: calls of a step."""
    scheduler.set_timesteps(STEPS)
    latent = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1))
    contexts = [torch.linspace(-1, 1, 12).reshape(2, 6) * (-1) ** prompt for prompt in range(prompts)]
    made = []
    for step, timestep in enumerate(scheduler.timesteps):
        before(step)
        with torch.no_grad():
            made += [call(x=latent, t=timestep, context=context)[0] for context in contexts]
        latent = scheduler.step(0.1 * made[-1], timestep, latent).prev_sample
    return made


def figures(engine: Engine) -> dict[str, Any]:
    """What an engine has counted, but for times and what its ranks report."""
    return {name: value for name, value in asdict(engine.stats).items() if name[-3:] != "_ms" and name != "ranks"}


def run(
    edits: Callable[[Any, int, int], object],
    generations: int = 1,
    prompts: int = 1,
    components: int = 2,
    **options: Any,
) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Some generations' outputs and figures. edits: what is done to the denoiser before a generation's step."""
    denoiser = toy()
    plan = toy_plan(denoiser, components, branches=prompts, streams=prompts)
    scheduler = scheduler_of("DDIMScheduler", DETERMINISTIC["DDIMScheduler"], STEPS)
    given = EngineOptions(**{"transport": "emulation", **options})
    made = []
    with Engine(denoiser, plan, given, scheduler=lambda: scheduler) as engine:
        for number in range(generations):
            made += generation(engine, scheduler, partial(edits, denoiser, number), prompts)
        return made, figures(engine)


def once(edit: Edit, at: int = CALM) -> Callable[[Any, int, int], object]:
    """An edit in mid-generation."""
    return lambda denoiser, _generation, step: step == at and edit(denoiser)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "mode"),
    [(exchange, EXACT), (hook, ASYNC), (train_no_more, ASYNC), (other_memory, LOOKAHEAD), (hook, LOOKAHEAD)],
)
def test_a_call_that_was_begun_before_a_change_was_seen_is_made_again(
    edit: Edit, mode: dict[str, Any], looks_first: Callable[[], None]
) -> None:
    made, counted = run(once(edit), **mode)
    looks_first()
    expected, alike = run(once(edit), **mode)
    assert equal(made, expected)
    assert counted == {**alike, "discarded_calls": 1}, "and nothing else counts it"


@pytest.mark.slow
def test_where_a_change_shows_in_no_graph_the_trajectory_ends_once(looks_first: Callable[[], None]) -> None:
    """Looked at first, it goes on; but ranks have made the discarded call a part of it."""
    made, counted = run(once(count), **ASYNC)
    assert counted["exact_reasons"] == {"warm-up": 2, "changed denoiser": 2}
    assert (counted["steps"], counted["discarded_calls"]) == (STEPS, 1)
    looks_first()
    expected, alike = run(once(count), **ASYNC)
    assert alike["exact_reasons"] == {"warm-up": 2}
    assert equal(made[:CALM], expected[:CALM])


def test_the_guard_counts_no_harm_of_a_call_that_was_discarded() -> None:
    denoiser = toy()
    scheduler = scheduler_of("DDIMScheduler", DETERMINISTIC["DDIMScheduler"], STEPS)
    options = EngineOptions(transport="emulation", mode="lookahead", quality=10.0)
    spent: list[float] = []
    with Engine(denoiser, toy_plan(denoiser, 2), options, scheduler=lambda: scheduler) as engine:

        def before(step: int) -> None:
            if step > 0:
                spent.append(engine._first._streams._open[-1].generation.spent["x"].most)
            if step == CALM:
                other_memory(denoiser)

        generation(engine, scheduler, before)
        assert engine.stats.discarded_calls == 1
    assert spent[CALM] == spent[CALM - 1] > spent[CALM - 2], "the call before it passed something on"


def test_calls_that_were_foreseen_with_it_are_discarded_too(looks_first: Callable[[], None]) -> None:
    at = STEPS - 2
    quiet = run(lambda *_: None, prompts=2, components=1)[1]
    made, counted = run(once(other_memory, at), prompts=2, components=1)
    looks_first()
    expected, alike = run(once(other_memory, at), prompts=2, components=1)
    assert equal(made, expected)
    assert (quiet["foreseen_calls"], quiet["wasted_calls"]) == (STEPS - 1, 0)
    assert counted == {**alike, "discarded_calls": 1, "wasted_calls": alike["wasted_calls"] + 1}


@pytest.mark.slow
def test_their_streams_start_anew_for_the_same_reason(looks_first: Callable[[], None]) -> None:
    """And not because the prompt is another than that of the call which was made again."""
    _, counted = run(once(train_no_more), prompts=2, **ASYNC)
    looks_first()
    _, alike = run(once(train_no_more), prompts=2, **ASYNC)
    assert (counted["discarded_calls"], counted["wasted_calls"]) == (1, 1)
    assert counted["exact_reasons"] == alike["exact_reasons"] == {"warm-up": 4, "changed denoiser": 4}


@pytest.mark.slow
def test_no_rank_computes_with_memory_that_was_written_to_and_a_former_graph() -> None:
    """It might fail at that: the channels chosen are none of those that the former layer makes."""
    plain, ran = Choosing().eval(), Choosing().eval()
    ran.load_state_dict(plain.state_dict())
    trajectory = Trajectory(calls=CALM + 2)
    with Engine(ran, toy_plan(ran, 2), EngineOptions(transport="threads", exact=True)) as engine, torch.no_grad():
        for call in range(len(trajectory)):
            if call == CALM:
                plain.widen()
                ran.widen()
            assert torch.equal(engine(**trajectory.inputs(call))[0], plain(**trajectory.inputs(call))[0]), call
        assert engine.stats.discarded_calls == 0


@pytest.mark.slow
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_it_gives_what_the_denoiser_gives(transport: str) -> None:
    plain, ran = toy(), toy()
    trajectory = Trajectory(calls=CALM + 2 * len(EDITS))
    options = EngineOptions(transport=transport, exact=True)  # type: ignore[arg-type]
    with Engine(ran, toy_plan(ran, 2), options) as engine, torch.no_grad():
        for call in range(len(trajectory)):
            if call >= CALM and (call - CALM) % 2 == 0:
                for denoiser in (plain, ran):
                    EDITS[(call - CALM) // 2](denoiser)
            made, expected = (each(**trajectory.inputs(call))[0] for each in (engine, plain))
            assert torch.equal(made, expected), call
        assert engine.stats.discarded_calls == 1, "from then on the denoiser is looked at first"
        assert engine.stats.steps == len(trajectory)


def test_the_denoiser_is_looked_at_when_rank_0_has_done_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def noted(where: Any, name: str, what: str, when: Callable[..., bool] = lambda *_args: True) -> None:
        inner = getattr(where, name)

        def outer(*args: Any, **kwargs: Any) -> Any:
            if when(*args):
                order.append(what)
            return inner(*args, **kwargs)

        monkeypatch.setattr(where, name, outer)

    noted(DenoiserChanges, "found", "look first")
    noted(DenoiserRanks, "command", "command", lambda _ranks, _rank, command: isinstance(command, Evaluate))
    noted(Worker, "_compute", "compute", lambda worker, *_args: worker.setup.rank == 0)
    noted(Dispatcher, "finish", "finish")
    noted(DenoiserChanges, "seems_changed", "look")
    denoiser, trajectory = toy(), Trajectory(calls=CALM + 1)
    with Engine(denoiser, toy_plan(denoiser, 2), EngineOptions(transport="emulation")) as engine, torch.no_grad():
        for call in range(CALM):
            engine(**trajectory.inputs(call))
        assert "look" not in order
        order.clear()
        engine(**trajectory.inputs(CALM))
    computed = order.count("compute")
    assert computed > 0
    assert order == ["command", *["compute"] * computed, "look", "finish"]


@pytest.mark.slow
def test_what_is_put_on_and_taken_off_at_every_step_has_nothing_made_twice(looks_first: Callable[[], None]) -> None:
    def edits(denoiser: Any, number: int, call: int) -> None:
        if number != 1:  # one generation of three has no hooks
            (hook if call % 2 else unhook)(denoiser)

    made, counted = run(edits, 3, **ASYNC)
    looks_first()
    expected, alike = run(edits, 3, **ASYNC)
    assert equal(made, expected)
    assert counted == alike


@pytest.mark.slow
def test_after_a_generation_without_changes_it_is_looked_at_later_again() -> None:
    def edits(changing: tuple[int, ...], denoiser: Any, number: int, step: int) -> None:
        if step == 0 or (step == CALM + 2 and number in changing):
            other_memory(denoiser)  # what is done before a generation's first call counts for none

    discarded = [
        run(partial(edits, changing), 4, **EXACT)[1]["discarded_calls"] for changing in ((0,), (0, 1, 2, 3), (0, 3))
    ]
    assert discarded == [1, 1, 2]


def test_an_equal_number_is_no_change() -> None:
    plain, ran = toy(), toy()
    ran.factor = plain.factor = 1000.5
    trajectory = Trajectory(calls=CALM + 2)
    with Engine(ran, toy_plan(ran, 2), EngineOptions(transport="emulation", exact=True)) as engine, torch.no_grad():
        for call in range(CALM + 2):
            ran.factor = float("1000.5")
            assert torch.equal(engine(**trajectory.inputs(call))[0], plain(**trajectory.inputs(call))[0])
        assert engine.stats.discarded_calls == 0


@pytest.mark.slow
def test_what_cannot_be_followed_is_refused_and_can_be_taken_back() -> None:
    plain, ran = toy(), toy()
    trajectory = Trajectory(calls=CALM + 3)
    with Engine(ran, toy_plan(ran, 2), EngineOptions(transport="emulation", exact=True)) as engine, torch.no_grad():
        for call in range(CALM):
            engine(**trajectory.inputs(call))
        layer = ran.up[0].write
        ran.up[0].write = torch.nn.Linear(3, 3)
        with pytest.raises(InputError, match="cannot"):
            engine(**trajectory.inputs(CALM))
        ran.up[0].write = layer
        for call in range(CALM, CALM + 3):
            assert torch.equal(engine(**trajectory.inputs(call))[0], plain(**trajectory.inputs(call))[0])
        assert engine.stats.steps == CALM + 3


def test_a_refusal_says_nothing_of_what_was_tried_before() -> None:
    denoiser, trajectory = toy(), Trajectory(calls=CALM)
    options = EngineOptions(transport="emulation", exact=True)
    with Engine(denoiser, toy_plan(denoiser, 2), options) as engine, torch.no_grad():
        trajectory.through(engine)
        with pytest.raises(InputError) as refused:
            engine(torch.zeros(2, 5, WIDTH + 1), torch.tensor(1.0), trajectory.context)
    error: BaseException | None = refused.value
    while error is not None:
        assert not isinstance(error, LookFirst)
        error = error.__cause__ or error.__context__


@pytest.mark.slow
def test_a_call_of_another_size_is_traced_of_what_the_denoiser_is_by_then(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, ran = toy(), toy()
    traced: list[int] = []
    trace = TracedGraphs._trace
    monkeypatch.setattr(TracedGraphs, "_trace", lambda *args, **more: (traced.append(1), trace(*args, **more))[1])
    trajectory, larger = Trajectory(calls=CALM + 2), Trajectory(calls=CALM + 2, rows=4)
    with Engine(ran, toy_plan(ran, 2), EngineOptions(transport="emulation")) as engine, torch.no_grad():
        for call in range(CALM + 1):
            engine(**trajectory.inputs(call))
        traced.clear()
        hook(ran)
        hook(plain)
        assert torch.equal(engine(**larger.inputs(0))[0], plain(**larger.inputs(0))[0])
        assert len(traced) == 1, "and not of what it was, too"
        unhook(ran)
        unhook(plain)
        assert torch.equal(engine(**larger.inputs(0))[0], plain(**larger.inputs(0))[0])
        assert engine.stats.discarded_calls == 0
