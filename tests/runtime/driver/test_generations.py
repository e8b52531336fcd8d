"""Generations: a run that won no time says so once, with the reason and the way out; a healthy one says nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from runtime.driver.generations import Generation
from runtime.engine import Engine
from runtime.options import EngineOptions
from runtime.stats import Stats
from tests.support.engines import WIDTH
from tests.support.toy_plans import DENOISER, KINDS
from tests.support.toy_sampling import PROMPT, ToyPipeline

pytestmark = pytest.mark.usefixtures("trace_once")

FALLING = [900.0 - 100 * step for step in range(8)]
LATENT = torch.linspace(-1, 1, 2 * 5 * WIDTH).sin().reshape(2, 5, WIDTH)


@pytest.fixture
def engines() -> Iterator[Callable[..., Engine]]:
    """Makes engines; the scheduler of loops has FALLING timesteps."""
    made: list[Engine] = []

    def make(kind: str = "folded", **options: Any) -> Engine:
        scheduler = SimpleNamespace(timesteps=torch.tensor(FALLING))
        given = EngineOptions(**{"transport": "emulation", **options})
        made.append(Engine(DENOISER, KINDS[kind].plan, given, scheduler=lambda: scheduler))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def warnings_in(caplog: Any) -> list[str]:
    """What the user is told."""
    return [record.getMessage() for record in caplog.records if record.name == "runtime"]


def closed(engine: Engine) -> Stats:
    """The stats, twice asked for, of an engine that is then closed."""
    assert engine.stats.steps == engine.stats.steps
    stats = engine.stats
    engine.close()
    assert sum(stats.exact_reasons.values()) == stats.exact_steps
    return stats


def run(
    engine: Engine,
    timesteps: list[float] = FALLING,
    prompt: Callable[[int], torch.Tensor] = lambda _step: PROMPT,
    latent: Callable[[int], torch.Tensor] = lambda step: LATENT * 0.9**step,
) -> None:
    for step, timestep in enumerate(timesteps):
        engine(x=latent(step), t=timestep, context=prompt(step))


def noise(step: int) -> torch.Tensor:
    """That replaces the latent at every second call from the third on."""
    fresh = torch.randn(LATENT.shape, generator=torch.Generator().manual_seed(max(step // 2, 1)))
    return fresh * 0.9 ** (step % 2)


USELESS: dict[str, tuple[dict[str, Any], str]] = {
    "prompts": (
        {"prompt": lambda step: PROMPT + step},
        "of 7 denoiser calls of a generation that could have been lagged 0 were, so that little time or none was won: "
        "7 were exact because their conditions were others",
    ),
    "latents": ({"latent": noise}, "no step of the sampler can have made their latents"),
    "timesteps": (
        {"timesteps": [7.0, 9.0, 6.0, 8.0, 5.0, 7.5, 4.0, 6.5]},
        "In a loop of your own give Engine the loop's scheduler",
    ),
    "few": ({"timesteps": FALLING[-2:]}, "the warm-up is the first 2 of each trajectory. Take more steps"),
}


@pytest.mark.parametrize("case", USELESS)
def test_a_run_that_won_no_time_says_why_and_once(case: str, engines: Callable[..., Engine], caplog: Any) -> None:
    options, said = USELESS[case]
    engine = engines()
    for _ in range(3):
        run(engine, **options)
    closed(engine)
    assert sum(said in sentence for sentence in warnings_in(caplog)) == 1, caplog.text


def test_a_healthy_run_says_nothing(engines: Callable[..., Engine], caplog: Any) -> None:
    engine = engines()
    pipe = ToyPipeline(engine, DENOISER)
    for prompt in (PROMPT, -PROMPT):
        pipe(0, 5, prompt)
    run(engine)
    run(engine)
    next(pipe.latents(1))  # and is interrupted
    assert closed(engine).exact_reasons == {"warm-up": 8}
    assert not warnings_in(caplog)


def test_what_was_asked_to_be_exact_says_nothing(engines: Callable[..., Engine], caplog: Any) -> None:
    engine = engines(exact=True)
    run(engine)
    assert closed(engine).exact_reasons == {"exact mode": 8}
    assert not warnings_in(caplog)


def test_rows_that_branches_cannot_share_are_told(engines: Callable[..., Engine], caplog: Any) -> None:
    """Guidance that is off; InstructPix2Pix and PAG have three rows."""
    engine = engines("branches")
    run(engine, prompt=lambda _step: PROMPT[:1], latent=lambda step: LATENT[:1] * 0.9**step)
    closed(engine)
    assert len(warnings_in(caplog)) == 1
    assert "rank 2, 3 did nothing in a generation: calls of 1 row cannot be shared evenly by" in caplog.text
    assert "partition-model with --branches 1" in caplog.text


@pytest.mark.parametrize(("rows", "branches"), [(1, 2), (2, 4), (4, 2), (6, 4)])
def test_of_fewer_branches_those_that_can_share_the_rows_are_told(rows: int, branches: int) -> None:
    """Of a plan of two streams, each of which has four branches."""
    plan = cast(Any, SimpleNamespace(branches=8, streams=2, branches_per_stream=4))
    generation = Generation(cast(Any, None), None, None, False, 1, 1, plan)
    generation.count(900.0, None, [0], rows)
    generation.count(900.0, None, [4], rows)
    assert f"with --branches {branches}." in generation.lessons(is_over=True)["idle"]


def test_guidance_that_made_more_of_what_was_passed_on_is_told() -> None:
    generation = Generation(cast(Any, None), None, None, False, 1, 1, KINDS["folded"].plan)
    generation.spent["x"].add(0.1, bound=0.1)
    assert "guidance rose" not in generation.lessons(is_over=True)
    generation.spent["x"].add(0.2, bound=0.1)
    assert "Run such generations with exact=True" in generation.lessons(is_over=False)["guidance rose"]


def test_another_size_within_a_generation_is_counted(engines: Callable[..., Engine], caplog: Any) -> None:
    engine = engines()
    run(engine, prompt=lambda s: PROMPT[: 1 + s % 2], latent=lambda s: LATENT[: 1 + s % 2] * 0.9**s)
    assert closed(engine).exact_reasons == {"warm-up": 2, "another size": 2}
    assert not warnings_in(caplog)


def test_a_denoiser_that_was_changed_within_a_generation_is_counted(engines: Callable[..., Engine]) -> None:
    engine = engines()
    run(engine, FALLING[:4])
    engine._first._streams.end_all()
    run(engine, FALLING[4:], latent=lambda step: LATENT * 0.9 ** (4 + step))
    assert closed(engine).exact_reasons == {"warm-up": 2, "changed denoiser": 2}


def test_calls_without_a_timestep_are_no_warm_up_for_ever() -> None:
    generation = Generation(cast(Any, None), None, None, False, 1, 2, KINDS["folded"].plan)
    generation.count(None, "warm-up", range(1), 2)
    assert not generation.starts(None)
