"""LetGo: more trajectories and sizes than are kept take turns; each is right, or exact and said to be."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from runtime.driver.denoiser_call import DenoiserCall
from runtime.driver.let_go import LetGo
from runtime.driver.stream import Stream
from runtime.driver.streams import Streams
from runtime.engine import Engine
from runtime.options import EngineOptions
from tests.support.engines import WIDTH, toy_plan
from tests.support.toy_plans import DENOISER
from tests.support.toy_sampling import PROMPT, ToyScheduler, sampled
from tests.support.trouble import wait_until

pytestmark = pytest.mark.usefixtures("trace_once")

PLAN = toy_plan(DENOISER, 2, mode="async", warmup=1)
STEPS = 5
SLOW = pytest.mark.slow


class Watched:
    """An engine, and what its calls were compared with.

    Attributes:
        of: by stream, the requests whose calls it has taken.
        exact: of how many calls the output was the denoiser's own.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.request = -1
        self.exact = 0
        self.scheduler: Any = None
        self.of: dict[Stream, set[int]] = defaultdict(set)
        given = {"transport": "emulation", "quality": "off", **options}
        self.engine = Engine(DENOISER, PLAN, EngineOptions(**given), scheduler=lambda: self.scheduler)
        find = Streams.of

        def noted(streams: Streams, call: DenoiserCall, before_start: Callable[[], object]) -> Stream:
            found = find(streams, call, before_start)
            self.of[found].add(self.request)
            return found

        monkeypatch.setattr(Streams, "of", noted)

    def __call__(self, **inputs: Any) -> tuple[torch.Tensor]:
        before = self.engine.stats.exact_steps
        output = self.engine(**inputs)
        if self.engine.stats.exact_steps > before:
            assert torch.equal(output[0], DENOISER(**inputs)[0])
            self.exact += 1
        return output

    def taking_turns(self, requests: Sequence[Iterator[Any]], order: Sequence[int]) -> None:
        """Make the calls of requests in an order: each is a generator that makes one for each ``next``."""
        for each in requests:
            next(each)
        for self.request in order:
            next(requests[self.request])


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Watched]]:
    made: list[Watched] = []

    def begin(**options: Any) -> Watched:
        made.append(Watched(monkeypatch, **options))
        return made[-1]

    yield begin
    for each in made:
        each.engine.close()


def orders(requests: int) -> list[list[int]]:
    """In turn; at random; the first one pauses until all others are done, and the last one has begun."""
    calls = [request for _ in range(STEPS) for request in range(requests)]
    mixed = random.Random(0).sample(calls, len(calls))
    last = requests - 1
    others = [request for request in range(1, last) for _ in range(STEPS)]
    return [calls, mixed, [0, *others, last, *[0] * (STEPS - 1), *[last] * (STEPS - 1)]]


@pytest.mark.parametrize("scheduled", [True, False], ids=["one scheduler", "none"])
@pytest.mark.parametrize(
    ("kept", "requests"), [(2, 5), pytest.param(1, 7, marks=SLOW), pytest.param(12, 40, marks=SLOW)]
)
def test_no_trajectory_goes_on_as_another(
    watched: Callable[..., Watched], kept: int, requests: int, scheduled: bool
) -> None:
    """Of one prompt and size, by one loop: nothing but timesteps and latents tells them apart."""
    for order in orders(requests)[: None if scheduled else -1]:
        engine = watched(kept_trajectories=kept)
        scheduler = ToyScheduler()
        scheduler.set_timesteps(STEPS)
        engine.scheduler = scheduler if scheduled else None
        engine.taking_turns([sampled(engine, scheduler, seed, PROMPT) for seed in range(requests)], order)
        assert all(len(own) == 1 for own in engine.of.values()), order
        assert engine.exact > 0
        assert len(engine.engine._first._streams._open) <= kept


def test_without_being_told_apart_they_would_be_mixed_up(
    watched: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the test above can fail."""
    monkeypatch.setattr(LetGo, "may_have", lambda _self, _call: False)
    engine = watched(kept_trajectories=1)
    engine.scheduler = scheduler = ToyScheduler()
    scheduler.set_timesteps(STEPS)
    engine.taking_turns([sampled(engine, scheduler, seed, PROMPT) for seed in range(7)], orders(7)[0])
    assert any(len(requests) > 1 for requests in engine.of.values())


def test_it_is_said_and_counted_and_what_takes_no_turns_is_lagged_again(
    watched: Callable[..., Watched], caplog: pytest.LogCaptureFixture
) -> None:
    engine = watched(kept_trajectories=2)
    engine.scheduler = scheduler = ToyScheduler()
    scheduler.set_timesteps(STEPS)
    engine.taking_turns([sampled(engine, scheduler, seed, PROMPT) for seed in range(6)], orders(6)[0])
    reasons = engine.engine.stats.exact_reasons
    assert reasons["let go of"] == 6 * (STEPS - 1) - 1, "the last one is still there when the others have ended"
    said = [record.getMessage() for record in caplog.records if "kept_trajectories=" in record.getMessage()]
    assert len(said) == 1
    assert "more trajectories or sizes take turns than the engine keeps" in said[0]
    scheduler.set_timesteps(STEPS)  # another run: none that was let go of goes on
    lagged = engine.engine.stats.async_steps
    engine.taking_turns([sampled(engine, scheduler, 9, PROMPT)], [0] * STEPS)
    assert engine.engine.stats.async_steps == lagged + STEPS - 1


def test_requests_one_after_the_other_lose_nothing_without_a_scheduler(watched: Callable[..., Watched]) -> None:
    """Nobody says that they have ended, so that each lets another one go."""
    engine = watched(kept_trajectories=2)
    timesteps = ToyScheduler()
    timesteps.set_timesteps(STEPS)
    for seed in range(6):
        engine.taking_turns([sampled(engine, timesteps, seed, PROMPT)], [0] * STEPS)
    assert engine.engine.stats.async_steps == 6 * (STEPS - 1)


def sized(call: Callable[..., Any], scheduler: Any, rows: int) -> Iterator[torch.Tensor]:
    """A generation of so many rows on a straight line, as can be foreseen; for each ``next`` a call and its output."""
    made = torch.Generator().manual_seed(rows)
    latent, noise = (torch.randn(rows, 5, WIDTH, generator=made) for _ in range(2))
    for timestep in scheduler.timesteps:
        output = call(x=latent, t=timestep.float(), context=PROMPT[:1].expand(rows, -1).contiguous())[0]
        latent = scheduler.step(noise, int(timestep), latent).prev_sample
        yield output


@pytest.mark.parametrize(
    ("mode", "transport"), [("async", "emulation"), ("lookahead", "threads"), ("lookahead", "processes")]
)
def test_sizes_that_take_turns_are_right_and_nothing_of_them_is_left(
    mode: str, transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    """More sizes than are kept: first call by call, when what ranks have begun for later calls is never read; then
    generation by generation, each as if it were alone."""
    plan = toy_plan(DENOISER, 3, mode=mode, warmup=2)
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(STEPS)
    plain = EngineOptions(transport="emulation", quality="off")
    options = replace(plain, transport=transport, kept_graphs=2, step_timeout_s=60)
    with torch.no_grad():
        with Engine(DENOISER, plan, plain, scheduler=lambda: scheduler) as engine:
            wanted = {}
            for rows in (2, 4, 6):
                scheduler.set_timesteps(STEPS)
                wanted[rows] = list(sized(engine, scheduler, rows))
            assert engine.stats.exact_steps < 3 * STEPS
        with Engine(DENOISER, plan, options, scheduler=lambda: scheduler) as engine:
            turns = [sized(engine, scheduler, rows) for rows in (2, 4, 6)]
            for _ in range(STEPS):
                for turn in turns:
                    next(turn)
            for rows in (6, 2, 4, 2):
                scheduler.set_timesteps(STEPS)
                made = list(sized(engine, scheduler, rows))
                assert all(torch.equal(one, other) for one, other in zip(made, wanted[rows], strict=True))
            wait_until(lambda: not any(rank.trajectories for rank in engine.stats.ranks))
            worker = engine._ranks.workers[0]
            assert len(worker._components) <= 2
            assert worker.mailbox.kept == 0
            assert len(worker.mailbox._tables) <= 2
    assert sum("was traced again" in record.getMessage() for record in caplog.records) == 1


def test_with_room_for_one_graph_branches_and_microbatches_have_theirs(caplog: pytest.LogCaptureFixture) -> None:
    plan = toy_plan(DENOISER, 2, branches=2, branch_rows=(2, 1))
    given = {"x": torch.randn(6, 5, WIDTH), "context": torch.randn(6, 6)}
    options = EngineOptions(transport="emulation", kept_graphs=1, microbatches=2, exact=True)
    with Engine(DENOISER, plan, options) as engine, torch.no_grad():
        for call in itertools.chain(range(3), range(3)):
            inputs = {**given, "t": torch.tensor(900.0 - 100 * call)}
            torch.testing.assert_close(engine(**inputs)[0], DENOISER(**inputs)[0])
    assert not [record for record in caplog.records if "was traced again" in record.getMessage()]
