"""Streams: several trajectories at once, each equal to itself alone, and what is kept of them."""

from __future__ import annotations

import asyncio
import copy
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from runtime.driver import continuity
from runtime.driver.generations import PACE
from runtime.driver.trajectory import MODE, WARM_UP
from runtime.engine import Engine
from runtime.options import EngineOptions
from tests.support.engines import WIDTH, equal
from tests.support.toy_plans import DENOISER, KINDS
from tests.support.toy_sampling import PROMPT, ToyPipeline, ToyScheduler, sampled

pytestmark = pytest.mark.usefixtures("trace_once")

PLAN = KINDS["folded"].plan
STEPS = 4


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine(DENOISER, PLAN, EngineOptions(transport="emulation")) as made:
        yield made


@pytest.fixture(scope="module")
def alone() -> Callable[..., torch.Tensor]:
    """What a trajectory gives by itself."""
    known: dict[Any, torch.Tensor] = {}

    def of(seed: int, steps: int = STEPS, prompt: torch.Tensor = PROMPT) -> torch.Tensor:
        key = seed, steps, float(prompt.sum())
        if key not in known:
            with Engine(DENOISER, PLAN, EngineOptions(transport="emulation")) as engine:
                known[key] = ToyPipeline(engine, DENOISER)(seed, steps, prompt)
                assert engine.stats.async_steps == steps - 2, "it is lagged"
        return known[key]

    return of


def taking_turns(latents: Sequence[Iterator[torch.Tensor]], order: Sequence[int]) -> list[torch.Tensor]:
    """The last latents of trajectories whose calls are made in an order."""
    last = [next(each) for each in latents]
    for turn in order:
        last[turn] = next(latents[turn])
    assert all(next(each, None) is None for each in latents)
    return last


ORDERS = sorted(set(itertools.permutations([0] * STEPS + [1] * 3)))


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_two_trajectories_take_turns_in_every_order(
    engine: Engine, alone: Callable[..., torch.Tensor], every: int
) -> None:
    """Generators of two pipelines in one thread: same prompt, a scheduler each."""
    assert len(ORDERS) == 35
    expected = [alone(0), alone(1, 3)]
    for order in ORDERS[::every]:
        pipes = [ToyPipeline(engine, DENOISER) for _ in expected]
        assert equal(taking_turns([pipes[0].latents(0, STEPS), pipes[1].latents(1, 3)], order), expected)


def test_loops_of_no_pipeline_are_told_apart_by_their_latents(alone: Callable[..., torch.Tensor]) -> None:
    """One scheduler for both, or none at all."""
    scheduler = ToyScheduler()
    scheduler.set_timesteps(STEPS)
    expected = [alone(0), alone(1)]
    for given in (None, lambda: scheduler):
        with Engine(DENOISER, PLAN, EngineOptions(transport="emulation"), scheduler=given) as engine:
            for order in ([0, 1] * STEPS, [0, 0, 1, 0, 1, 1, 0, 1], [1, 1, 1, 0, 1, 0, 0, 0]):
                latents = [sampled(engine, scheduler, seed, PROMPT) for seed in (0, 1)]
                assert equal(taking_turns(latents, order), expected)


def test_where_all_calls_are_exact_no_latent_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = ToyScheduler()
    scheduler.set_timesteps(STEPS)
    seeds = [0, 1]
    expected = [list(sampled(DENOISER, scheduler, seed, PROMPT))[-1] for seed in seeds]
    monkeypatch.setattr(continuity, "_thinned", lambda *_: pytest.fail("it was looked at"))
    options = EngineOptions(transport="emulation", exact=True)
    with Engine(DENOISER, PLAN, options, scheduler=lambda: scheduler) as engine:
        latents = [sampled(engine, scheduler, seed, PROMPT) for seed in seeds]
        assert equal(taking_turns(latents, [0, 0, 1, 0, 1, 1, 0, 1]), expected)
        assert set(engine.stats.exact_reasons) == {MODE}


def test_streams_of_one_step_have_their_conditions(engine: Engine, alone: Callable[..., torch.Tensor]) -> None:
    """Guidance in two calls without cache contexts: a trajectory each."""
    pipe = ToyPipeline(engine, DENOISER)
    pipe.scheduler.set_timesteps(STEPS)
    latents = [sampled(engine, pipe.scheduler, 0, prompt) for prompt in (PROMPT, -PROMPT)]
    assert equal(taking_turns(latents, [0, 1] * STEPS), [alone(0), alone(0, STEPS, -PROMPT)])


class SomeStepsPipeline(ToyPipeline):
    """Calls its denoiser at some of 12 steps, as for guidance in an interval."""

    def at(self, steps: Sequence[int]) -> None:
        self.scheduler.set_timesteps(12)
        latent = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))
        for step in steps:
            with torch.no_grad():
                made = self.call(x=latent, t=self.scheduler.timesteps[step], context=PROMPT)[0]
            latent = self.scheduler.step(made, latent)


@pytest.mark.parametrize(
    ("steps", "reasons"),
    [
        (range(3, 12), {WARM_UP: 2}),
        (range(0, 12, 2), {WARM_UP: 2}),
        ([0, 1, 2, 3, 9, 10, 11], {WARM_UP: 2, PACE: 2}),
        ([0, 2, 4, 5, 6, 7], {WARM_UP: 2, PACE: 2}),
    ],
)
def test_nothing_is_read_of_steps_further_back_than_those_before(
    engine: Engine, steps: Sequence[int], reasons: dict[str, int]
) -> None:
    SomeStepsPipeline(engine, DENOISER).at(steps)
    assert engine.stats.exact_reasons == reasons


class PanoramaPipeline(ToyPipeline):
    """Makes views one after the other, and gives the scheduler the view's own state for each, a copy."""

    def views(self, seeds: Sequence[int]) -> list[torch.Tensor]:
        self.scheduler.set_timesteps(STEPS)
        states = [copy.deepcopy(vars(self.scheduler))] * len(seeds)
        latents = [sampled(self.call, self.scheduler, seed, PROMPT) for seed in seeds]
        last = [next(each) for each in latents]
        for _ in range(STEPS):
            for view, each in enumerate(latents):
                vars(self.scheduler).update(states[view])
                last[view] = next(each)
                states[view] = copy.deepcopy(vars(self.scheduler))
        return last


def test_a_scheduler_whose_state_is_put_back_goes_on(engine: Engine, alone: Callable[..., torch.Tensor]) -> None:
    assert equal(PanoramaPipeline(engine, DENOISER).views([0, 1]), [alone(0), alone(1)])
    assert (engine.stats.exact_steps, engine.stats.async_steps) == (4, 2 * STEPS - 4)


class ImagePipeline(ToyPipeline):
    """Begins at the second timestep."""

    def from_image(self, seed: int) -> None:
        self.scheduler.set_timesteps(STEPS)
        latent = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(seed))
        for timestep in self.scheduler.timesteps[1:]:
            latent = self.scheduler.step(self.call(x=latent, t=timestep, context=PROMPT)[0], latent)


def test_a_run_with_equal_timesteps_is_another_wherever_it_begins(engine: Engine) -> None:
    """An interrupted run has made its first call, and the next one's is at the timestep that comes after that."""
    pipe = ImagePipeline(engine, DENOISER)
    interrupted = pipe.latents(0, STEPS)
    assert next(interrupted).shape == next(interrupted).shape
    pipe.from_image(1)
    assert engine.stats.exact_steps == 1 + 2


@pytest.mark.parametrize("transport", ["emulation", "threads"])
def test_requests_in_threads_do_not_see_each_other(transport: str, alone: Callable[..., torch.Tensor]) -> None:
    """Also where a pool's threads serve one request after another."""
    requests = [(seed, steps) for seed in range(4) for steps in (STEPS, 3)]
    with Engine(DENOISER, PLAN, EngineOptions(transport=transport)) as engine, ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda request: ToyPipeline(engine, DENOISER)(*request), requests))
        assert engine.stats.exact_steps == 2 * len(requests)
    assert equal(made, [alone(*request) for request in requests])


def test_requests_in_tasks_do_not_see_each_other(engine: Engine, alone: Callable[..., torch.Tensor]) -> None:
    """Tasks that have a whole pipeline, or every single step, run by some thread of a pool."""

    async def whole(seed: int) -> torch.Tensor:
        return await asyncio.to_thread(ToyPipeline(engine, DENOISER), seed, STEPS)

    async def by_steps(seed: int) -> torch.Tensor:
        scheduler = ToyScheduler()
        scheduler.set_timesteps(STEPS)
        latents = sampled(engine, scheduler, seed, PROMPT)
        for _ in range(STEPS):
            await asyncio.to_thread(next, latents)
        return await asyncio.to_thread(next, latents)

    async def in_turns(seed: int) -> torch.Tensor:
        latents = ToyPipeline(engine, DENOISER).latents(seed, STEPS)
        for _ in range(STEPS):
            next(latents)
            await asyncio.sleep(0)
        return next(latents)

    async def both(kind: Callable[[int], Any]) -> list[torch.Tensor]:
        return list(await asyncio.gather(kind(0), kind(1)))

    for kind in (whole, by_steps, in_turns):
        assert equal(asyncio.run(both(kind)), [alone(0), alone(1)])


def test_threads_have_their_own_cache_contexts(engine: Engine, alone: Callable[..., torch.Tensor]) -> None:
    """A thread that enters a context moves no other one's calls there."""
    pipe = ToyPipeline(engine, DENOISER)
    latents = pipe.latents(0, STEPS)
    for _ in range(3):
        next(latents)
    other = threading.Thread(target=engine.in_context, args=("cond",))
    other.start()
    other.join()
    assert torch.equal(list(latents)[-1], alone(0))


def test_a_latent_that_no_step_can_have_made_starts_with_exact_calls(engine: Engine) -> None:
    """A callback puts other latents in."""
    pipe = ToyPipeline(engine, DENOISER)
    pipe.scheduler.set_timesteps(8)
    latent = torch.randn(2, 5, 8)
    for step, timestep in enumerate(pipe.scheduler.timesteps):
        if step == 5:
            latent = torch.randn(2, 5, 8)
        output = engine(x=latent, t=timestep, context=PROMPT)[0]
        assert engine.stats.exact_steps == (min(step + 1, 2) if step < 5 else min(step - 2, 4))
        latent = pipe.scheduler.step(output, latent)


def kept(engine: Engine) -> int:
    """Of how many trajectories some rank keeps something."""
    return max(rank.trajectories for rank in engine.stats.ranks)


def test_what_is_kept_does_not_grow_with_the_number_of_requests(engine: Engine) -> None:
    """Whether they end, are abandoned, or are of pipelines that are no more."""
    for seed in range(4):
        pipe = ToyPipeline(engine, DENOISER)
        pipe(seed, 3)
        assert kept(engine) == 0
        next(itertools.islice(pipe.latents(seed, 5), 3, None))
        assert kept(engine) == 1
    most = engine.options.kept_trajectories
    for seed in range(most + 4):
        next(itertools.islice(sampled(engine, pipe.scheduler, seed, PROMPT), 2, None))
    assert kept(engine) == most, "of this thread, and of the pipeline"
    assert len(engine._first._dispatcher._distribution._preambles[0]._prompt) == most
    assert next(engine._first._streams._numbers) <= 2 * (most + 1)


@pytest.mark.processes
def test_ranks_in_processes_forget_too(alone: Callable[..., torch.Tensor]) -> None:
    with Engine(DENOISER, PLAN) as engine:
        for seed in (0, 1):
            assert torch.equal(ToyPipeline(engine, DENOISER)(seed, STEPS), alone(seed))
        deadline = time.monotonic() + 30
        while kept(engine):  # they may still be at it
            assert time.monotonic() < deadline
