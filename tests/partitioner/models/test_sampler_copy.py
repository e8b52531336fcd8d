"""copied: a scheduler is stepped, and nothing that its owner keeps hears of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from partitioner.models.sampler_copy import copied
from tests.support.schedulers import BETAS

Made = tuple[Any, Callable[[], object]]  # a scheduler, and what its owner keeps
SEEN: list[torch.Tensor] = []
COUNT = 0


def scheduler_of(kind: Any = EulerDiscreteScheduler) -> Any:
    made = kind(**BETAS)
    made.set_timesteps(6)
    return made


def counted_in_its_closure() -> Made:
    scheduler, count = scheduler_of(), 0
    inner = scheduler.step

    def step(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        return inner(*args, **kwargs)

    scheduler.step = step
    return scheduler, lambda: count


def recorded_by_two_functions() -> Made:
    """Which share what one of them keeps."""
    scheduler, seen = scheduler_of(), [torch.zeros(1)]
    inner = scheduler.step

    def keep(latent: torch.Tensor) -> None:
        assert len(seen) == scheduler.step_index
        seen.append(latent)

    def step(*args: Any, **kwargs: Any) -> Any:
        made = inner(*args, **kwargs)
        keep(made[0])
        return made

    scheduler.step = step
    return scheduler, lambda: len(seen)


def recorded_in_global_variables() -> Made:
    scheduler = scheduler_of()
    inner = scheduler.step

    def step(*args: Any, **kwargs: Any) -> Any:
        global COUNT
        COUNT += 1
        SEEN.append(args[2])
        return inner(*args, **kwargs)

    scheduler.step = step
    return scheduler, lambda: (len(SEEN), COUNT)


def of_a_recorder() -> Made:
    class Recorder:
        def __init__(self, inner: Any) -> None:
            self.inner, self.calls, self.latents = inner, 0, dict[int, torch.Tensor]()

        def step(self, factor: float, *args: Any, **kwargs: Any) -> Any:
            self.latents[self.calls] = factor * args[2]
            self.calls += 1
            return self.inner(*args, **kwargs)

    scheduler = scheduler_of()
    recorder = Recorder(scheduler.step)
    scheduler.step = partial(recorder.step, 2.0)
    return scheduler, lambda: (recorder.calls, len(recorder.latents))


def of_a_class_that_keeps_something() -> Made:
    class Remembers(EulerDiscreteScheduler):
        history: list[torch.Tensor] = []  # noqa: RUF012

        def step(self, *args: Any, **kwargs: Any) -> Any:
            self.history.append(args[0])
            return super().step(*args, **kwargs)

    return scheduler_of(Remembers), lambda: len(Remembers.history)


def with_numbers_of_its_own() -> Made:
    scheduler, numbers = scheduler_of(), torch.Generator().manual_seed(0)
    inner = scheduler.step

    def step(*args: Any, **kwargs: Any) -> Any:
        latent, *others = inner(*args, **kwargs)
        return (latent + torch.randn(latent.shape, generator=numbers), *others)

    scheduler.step = step
    return scheduler, lambda: numbers.get_state().tolist()


@pytest.mark.parametrize(
    "make",
    [
        counted_in_its_closure,
        recorded_by_two_functions,
        recorded_in_global_variables,
        of_a_recorder,
        of_a_class_that_keeps_something,
        with_numbers_of_its_own,
    ],
)
def test_what_its_owner_keeps_beside_a_scheduler_stays_as_it_is(make: Callable[[], Made]) -> None:
    scheduler, kept = make()

    def run(scheduler: Any) -> torch.Tensor:
        latent = torch.ones(1, 2)
        for timestep in scheduler.timesteps:
            latent = scheduler.step(0.5 * latent, timestep, latent, return_dict=False)[0]
        return latent

    before = kept()
    made = run(copied(scheduler))
    assert (kept(), scheduler.step_index) == (before, None)
    assert torch.equal(run(copied(scheduler)), made)
    assert torch.equal(run(scheduler), made)  # which does the same
    assert kept() != before


def test_what_a_function_holds_that_is_large_is_shared() -> None:
    scheduler, model = scheduler_of(), torch.nn.Linear(2, 2)
    inner = scheduler.step
    scheduler.step = lambda *args, **kwargs: (model(inner(*args, **kwargs)[0]),)
    closure = copied(scheduler).step.__closure__
    assert any(cell.cell_contents is model for cell in closure)
