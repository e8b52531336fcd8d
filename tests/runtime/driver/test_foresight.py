"""Foresight: which calls are begun before they are made, and that results never depend on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from runtime.engine import Engine
from runtime.options import EngineOptions
from runtime.stats import Stats
from tests.support.engines import WIDTH, toy_plan
from tests.support.toy_plans import DENOISER
from tests.support.toy_sampling import PROMPT, ToyScheduler

pytestmark = pytest.mark.usefixtures("trace_once")

STEPS = 6
PLAN = toy_plan(DENOISER, 1, branches=2, streams=2)
TWO_COMPONENTS = toy_plan(DENOISER, 2, branches=2, streams=2)
PROMPTS = {"cond": PROMPT, "uncond": -PROMPT, "perturbed": 2 * PROMPT, "other": 3 * PROMPT}

Calls = Sequence[str]  # of a step, by what conditions they have
Change = Callable[[int, str, dict[str, Any]], None]  # of a call's arguments, given its step and conditions


class GuidedPipeline:
    """Calls its denoiser several times per step, each time with other conditions.

    Args:
        unet: what it calls.
        calls: gives the calls of a step.
        change: what is done to a call's arguments.
        steps: how many there are.
    """

    def __init__(
        self,
        unet: Callable[..., Any],
        calls: Callable[[int], Calls] = lambda _step: ("cond", "uncond"),
        change: Change = lambda *_call: None,
        steps: int = STEPS,
    ) -> None:
        self.call, self.unet, self.scheduler = unet, DENOISER, ToyScheduler()
        self._calls, self._change, self._steps = calls, change, steps

    def __call__(self, seed: int = 0) -> list[torch.Tensor]:
        """Every latent."""
        self.scheduler.set_timesteps(self._steps)
        latents = [torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(seed))]
        for step, timestep in enumerate(self.scheduler.timesteps):
            outputs = {}
            for name in self._calls(step):
                arguments = {"x": latents[-1], "t": timestep, "context": PROMPTS[name]}
                self._change(step, name, arguments)
                with torch.no_grad():
                    outputs[name] = self.call(**arguments)[0]
            guided = sum(outputs.values()) / len(outputs)
            latents.append(self.scheduler.step(guided, latents[-1]))
        return latents


@pytest.fixture
def run() -> Callable[..., Stats]:
    """Runs a guided pipeline by an engine, in exact mode by default, and compares it with the denoiser's own."""

    def ran(plan: Any = PLAN, times: int = 1, options: dict[str, Any] | None = None, **pipeline: Any) -> Stats:
        expected = GuidedPipeline(DENOISER, **pipeline)()
        given = EngineOptions(**{"transport": "emulation", "exact": True, **(options or {})})
        with Engine(DENOISER, plan, given) as engine:
            for _ in range(times):
                made = GuidedPipeline(engine, **pipeline)()
                assert all(map(torch.equal, made, expected))
            return engine.stats

    return ran


def calls(stats: Stats) -> tuple[int, int, int]:
    return stats.steps, stats.foreseen_calls, stats.wasted_calls


@pytest.mark.parametrize("plan", [PLAN, TWO_COMPONENTS])
@pytest.mark.parametrize("transport", ["emulation", "threads", pytest.param("processes", marks=pytest.mark.processes)])
def test_the_second_call_is_foreseen_from_the_second_step_on(
    run: Callable[..., Stats], plan: Any, transport: str
) -> None:
    stats = run(plan, times=2, options={"transport": transport})
    assert calls(stats) == (4 * STEPS, 2 * (STEPS - 1), 0)
    assert all(report.steps >= 2 * STEPS - 1 for report in stats.ranks)  # the last may not be counted yet


def test_it_is_computed_while_the_first_one_is() -> None:
    """When the pipeline has the first result, the other branch has been given all that it needs."""
    with Engine(DENOISER, PLAN, EngineOptions(transport="emulation")) as engine:
        done: list[tuple[int, int]] = []

        def counted(**arguments: Any) -> Any:
            result = engine(**arguments)
            done.append(tuple(report.steps for report in engine.stats.ranks))  # type: ignore[arg-type]
            return result

        GuidedPipeline(counted, steps=3)()
    assert done == [(1, 0), (1, 1), (2, 2), (2, 2), (3, 3), (3, 3)]


def swapped(step: int) -> Calls:
    return ("cond", "uncond") if step % 2 else ("uncond", "cond")


def ends(step: int) -> Calls:
    return ("cond", "uncond") if step < 3 else ("cond",)


def begins(step: int) -> Calls:
    return ("cond", "uncond") if step >= 2 else ("cond",)


def every_other(step: int) -> Calls:
    return ("cond", "uncond") if step % 2 == 0 else ("cond",)


def three(_step: int) -> Calls:
    return ("cond", "uncond", "perturbed")


def four(_step: int) -> Calls:
    return ("cond", "uncond", "perturbed", "other")


@pytest.mark.parametrize(
    ("order", "foreseen", "wasted"),
    [
        (swapped, STEPS - 1, 0),
        (ends, 2, 1),
        (begins, STEPS - 3, 0),
        (every_other, 0, 2),
        (three, STEPS - 1, 0),  # with two groups of branches, the third stream shares the first one's
        (four, 2 * (STEPS - 1), 0),
    ],
)
def test_streams_may_come_and_go_and_change_their_order(
    run: Callable[..., Stats], order: Callable[[int], Calls], foreseen: int, wasted: int
) -> None:
    total = sum(len(order(step)) for step in range(STEPS))
    assert calls(run(calls=order)) == (total, foreseen, wasted)


def test_other_latents_in_one_step_are_computed_anew(run: Callable[..., Stats]) -> None:
    def change(step: int, name: str, arguments: dict[str, Any]) -> None:
        if step == 3 and name == "uncond":
            arguments["x"] = arguments["x"] + 1e-7

    # the call itself, and not the one after it, whose step before says nothing of what it will be like
    assert calls(run(change=change)) == (2 * STEPS, STEPS - 3, 1)


def test_a_second_call_of_latents_of_its_own_is_never_foreseen_and_it_is_said(
    run: Callable[..., Stats], caplog: Any
) -> None:
    def change(step: int, name: str, arguments: dict[str, Any]) -> None:
        if name == "uncond":
            arguments["x"] = arguments["x"] * 0.5

    assert calls(run(change=change)) == (2 * STEPS, 0, 0)
    assert "of 5 denoiser calls of a generation that could have been begun with the first call" in caplog.text
    assert "x was neither that of the step's first call nor as before" in caplog.text


def test_after_two_misses_in_a_row_it_is_given_up_and_said(run: Callable[..., Stats], caplog: Any) -> None:
    """Guidance at every other step; another generation is foreseen anew."""
    assert run(calls=every_other, steps=10, times=2).wasted_calls == 4
    assert [record.message[:60] for record in caplog.records if record.levelname == "WARNING"] == [
        "2 steps in a row made other denoiser calls than were foresee"
    ]


def test_prompts_that_change_are_computed_anew(run: Callable[..., Stats]) -> None:
    def change(step: int, name: str, arguments: dict[str, Any]) -> None:
        if step >= 3:
            arguments["context"] = arguments["context"] * 1.5

    assert calls(run(change=change)) == (2 * STEPS, STEPS - 2, 0)


def test_inputs_that_are_written_to_between_the_calls_are_computed_anew(run: Callable[..., Stats]) -> None:
    def change(step: int, name: str, arguments: dict[str, Any]) -> None:
        if step == 3 and name == "uncond":
            arguments["x"].mul_(1.5)

    stats = run(change=change)
    assert stats.wasted_calls == 1


@pytest.mark.parametrize("mode", ["async", "lookahead"])
def test_each_stream_is_lagged_as_by_itself(mode: str) -> None:
    """The same bits as where one branch computes both streams in turn."""
    options = {"mode": mode, "transport": "emulation", "quality": "off"}  # its scheduler cannot be tried out
    made = {}
    for plan in (toy_plan(DENOISER, 2), TWO_COMPONENTS):
        with Engine(DENOISER, plan, EngineOptions(**options)) as engine:
            made[plan.streams] = GuidedPipeline(engine)()
            made[-plan.streams] = engine.stats
    assert all(map(torch.equal, made[1], made[2]))
    assert made[-1].exact_steps == made[-2].exact_steps == 4
    assert made[-2].foreseen_calls == STEPS - 1


def test_a_generation_that_ends_in_mid_step_leaves_nothing(run: Callable[..., Stats]) -> None:
    """An exception between the calls of a step, and then another generation."""
    expected = GuidedPipeline(DENOISER)(seed=1)

    def change(step: int, name: str, _arguments: dict[str, Any]) -> None:
        if step == 3 and name == "uncond":
            raise KeyboardInterrupt

    with Engine(DENOISER, PLAN, EngineOptions(transport="emulation", exact=True)) as engine:
        with pytest.raises(KeyboardInterrupt):
            GuidedPipeline(engine, change=change)()
        assert all(map(torch.equal, GuidedPipeline(engine)(seed=1), expected))
        stats = engine.stats
        assert (stats.foreseen_calls, stats.wasted_calls) == (2 + STEPS - 1, 1)
        assert all(report.trajectories <= 2 for report in stats.ranks)


def test_a_generation_of_one_step_says_nothing(run: Callable[..., Stats], caplog: Any) -> None:
    """Nothing can be foreseen, and nothing was asked for in vain."""
    assert calls(run(steps=1)) == (2, 0, 0)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_one_stream_leaves_the_other_branch_idle_and_it_is_said(run: Callable[..., Stats], caplog: Any) -> None:
    run(calls=lambda _step: ("cond",))
    assert "rank 1 did nothing in a generation: a step's calls were of fewer streams than the 2" in caplog.text


@pytest.mark.parametrize(("first", "second"), [("cond", "perturbed"), ("perturbed", "cond")])
def test_a_call_of_fewer_or_more_of_the_same_rows_is_foreseen(
    run: Callable[..., Stats], first: str, second: str
) -> None:
    """Both halves of guidance in one call, and a perturbed pass of the conditional half only."""

    def change(_step: int, name: str, arguments: dict[str, Any]) -> None:
        if name == "cond":
            arguments["x"] = torch.cat([arguments["x"]] * 2)
            arguments["context"] = torch.cat([arguments["context"], -arguments["context"]])

    def halved(unet: Callable[..., Any]) -> Callable[..., Any]:
        return lambda **arguments: (unet(**arguments)[0][:2],)

    made = GuidedPipeline(halved(DENOISER), calls=lambda _step: (first, second), change=change)()
    with Engine(DENOISER, PLAN, EngineOptions(transport="emulation", exact=True)) as engine:
        got = GuidedPipeline(halved(engine), calls=lambda _step: (first, second), change=change)()
        assert calls(engine.stats) == (2 * STEPS, STEPS - 1, 0)
    assert all(map(torch.equal, got, made))
