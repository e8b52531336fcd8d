"""Trajectory: where one starts, and what it has the components run."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median
from typing import Any

import diffusers
import pytest
import torch

from partitioner.graph.ir import TracedGraph
from runtime.driver import latents_ahead
from runtime.driver import trajectory as module
from runtime.driver.call_arguments import CallForm, Tensors
from runtime.driver.callers import caller_of
from runtime.driver.denoiser_call import DenoiserCall
from runtime.driver.guard import Guard, bound_of
from runtime.driver.streams import Streams
from runtime.driver.traced_graphs import BuiltGraph, CallGraphs
from runtime.driver.trajectory import RunMode, Trajectory
from runtime.engine import Engine
from runtime.options import EngineOptions
from runtime.worker.specs import build_specs
from tests.support import engines
from tests.support.engines import equal
from tests.support.schedulers import BETAS, scheduler_of
from tests.support.toy_plans import DENOISER, GRAPHS, KINDS
from tools.measure.host import Operators


class Scheduler:
    """As diffusers' are seen: set_timesteps makes a new tensor."""

    timesteps: torch.Tensor

    def set_timesteps(self, count: int) -> None:
        self.timesteps = torch.arange(count)


def test_a_scheduler_tells_where_a_trajectory_starts() -> None:
    """Also where the timesteps fall on, and where one repeats, as in two-call samplers."""
    kind, scheduler = KINDS["folded"], Scheduler()
    options = EngineOptions(transport="emulation")
    with Engine(DENOISER, kind.plan, options, scheduler=lambda: scheduler) as engine:
        for start in (900.0, 600.0, 300.0):
            trajectory = engines.Trajectory()
            trajectory.timesteps = [torch.tensor(start - down) for down in (0, 20, 20, 40, 40, 60, 60)]
            scheduler.set_timesteps(7)
            assert equal(trajectory.through(engine), kind.alone(trajectory))


def test_a_scheduler_may_be_exchanged() -> None:
    kind, schedulers = KINDS["folded"], [Scheduler(), Scheduler()]
    for scheduler in schedulers:
        scheduler.set_timesteps(7)
    trajectory = engines.Trajectory()
    expected = kind.alone(trajectory)
    with Engine(DENOISER, kind.plan, EngineOptions(transport="emulation"), scheduler=lambda: schedulers[0]) as engine:
        assert equal(trajectory.through(engine), expected)
        schedulers.reverse()
        assert equal(trajectory.through(engine), expected)


@pytest.mark.parametrize("times", [[900.0, 900.0], [0.0, 900.0]])
def test_a_timestep_per_row_is_foreseen_only_where_all_are_one(
    times: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    times = [float(scheduler.timesteps[0]) if time else 0.0 for time in times]
    running = Trajectory(0, RunMode(components=3, mode="lookahead", warmup=1, periods=(1, 1, 1)))
    tensors = {"x": torch.zeros(2, 5, engines.WIDTH), "t": torch.tensor(times), "context": torch.zeros(2, 6)}
    running.start(GRAPHS[2](), tensors, max(times), scheduler)
    assert running.schedule.mode == ("lookahead" if len(set(times)) == 1 else "async")
    said = [record.getMessage() for record in caplog.records if record.name == "runtime"]
    assert ["calls have several timesteps at once" in message for message in said] == (
        [] if len(set(times)) == 1 else [True]
    )


def begin_or_take(
    running: Trajectory, graph: TracedGraph, tensors: Tensors, timestep: torch.Tensor, scheduler: Any
) -> None:
    """Give a trajectory the inputs of its first call or its next one."""
    if running.next_base == 0:
        running.start(graph, tensors, float(timestep), scheduler)
    else:
        running.take(tensors)


@pytest.mark.parametrize(("components", "most"), [(2, 280), (4, 310)])
def test_a_steady_call_with_a_guard_takes_few_operators(components: int, most: int) -> None:
    """Each takes the host microseconds, and a GPU some more. They were 426 and 681."""
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(20)
    mode = RunMode(components, "lookahead", 2, (1,) * components, quality=1.0)
    running, graph, context = Trajectory(0, mode), GRAPHS[2](), torch.zeros(2, 6)
    made, generator = [], torch.Generator().manual_seed(0)
    latent = torch.randn(1, 5, engines.WIDTH, generator=generator)
    counts = []
    for timestep in scheduler.timesteps:
        tensors = {"x": torch.cat([latent, latent]), "t": timestep, "context": context}
        with Operators() as operators:
            begin_or_take(running, graph, tensors, timestep, scheduler)
            runs = running.runs()
            for run in runs:
                running.inputs_at(run.call, graph, tensors, ["x"] if run.component == 0 else [])
            noise = torch.randn(2, 5, engines.WIDTH, generator=generator)
            (output,) = running.correct([tensors["x"] + 0.01 * noise])
            running.done(runs)
        made.append(running.schedule.mode)
        counts.append(operators.count)
        without, having = output.chunk(2)
        latent = scheduler.step(without + 2.0 * (having - without), timestep, latent)[0]
    assert median(counts[9:15]) < most, counts  # more where the guard refuses a call


def test_lookahead_runs_what_the_docstring_draws() -> None:
    """And a component reads messages of its own call only."""
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(7)
    running = Trajectory(0, RunMode(components=3, mode="lookahead", warmup=3, periods=(1, 1, 1)))
    graph, context = GRAPHS[2](), torch.zeros(2, 6)
    grid: list[list[str]] = [[], [], []]
    for call, timestep in enumerate(scheduler.timesteps):
        tensors = {"x": torch.full((2, 5, engines.WIDTH), float(call)), "t": timestep, "context": context}
        assert call == 0 or running.expects(float(timestep))
        begin_or_take(running, graph, tensors, timestep, scheduler)
        assert running.mode_now == ("exact" if call < 3 else "lookahead")
        runs = running.runs()
        for component, row in enumerate(grid):
            row.append(",".join(str(run.call) for run in runs if run.component == component) or ".")
        assert all(set(run.reads) == {run.call} for run in runs)
        running.done(runs)
    drawn = re.findall(r"^    component \d {4,}(.*)$", str(module.__doc__), re.MULTILINE)
    assert grid == [row.split() for row in drawn]


def test_an_output_is_corrected_for_the_error_of_its_own_latent_alone() -> None:
    """Such as a sound's, whose tokens differ from a video's in their number only."""
    scheduler = scheduler_of("DDIMScheduler", {"clip_sample": False}, 6)
    noise = torch.Generator().manual_seed(1)
    video = stepped(scheduler, lambda _call, latent: latent + 0.01 * torch.randn(latent.shape, generator=noise))
    graph, sound = GRAPHS[2](), torch.ones(2, 2, engines.WIDTH)  # which stays as it is, and so is foreseen
    latent = next(item for item in graph.inputs if item.name == "x")
    graph = replace(graph, inputs=(*graph.inputs, replace(latent, name="sound")))
    running = Trajectory(0, RunMode(components=2, mode="lookahead", warmup=2, periods=(1, 1)))
    for picture, timestep in zip(video, scheduler.timesteps, strict=True):
        tensors = {"x": picture, "sound": sound, "t": timestep, "context": torch.zeros(2, 6)}
        begin_or_take(running, graph, tensors, timestep, scheduler)
        runs = running.runs()
        for run in runs:
            running.inputs_at(run.call, graph, tensors, ["x", "sound"])
        exact = running.mode_now == "exact"
        outputs = [torch.ones_like(sound), torch.ones_like(picture)]
        corrected = running.correct(outputs)
        assert [torch.equal(one, output) for one, output in zip(corrected, outputs, strict=True)] == [True, exact]
        running.done(runs)
    assert not exact


def modes(
    scheduler: Any,
    latents: Sequence[torch.Tensor],
    passed: Sequence[float],
    output: torch.Tensor | None = None,
    prompts: Sequence[torch.Tensor] | None = None,
    **mode: Any,
) -> list[str]:
    """How each call of a trajectory over these latents and timesteps is run.

    output: that all calls make, if any. prompts: of each call.
    """
    given = {"components": 2, "mode": "lookahead", "warmup": 2, "periods": (1, 1)} | mode
    numbers = itertools.count(step=2)
    streams = Streams(RunMode(**given), KINDS["held"].plan, numbers, set(), most=32, microbatches=1, denoisers=[])
    found: list[str] = []
    caller = caller_of(DENOISER, lambda: scheduler)
    graph = GRAPHS[2]()
    prompts = [torch.zeros(2, 6)] * len(latents) if prompts is None else prompts
    graphs = CallGraphs((BuiltGraph(0, graph, *build_specs(graph, KINDS["held"].plan.place(graph), 2)),))
    for latent, timestep, context in zip(latents, passed, prompts, strict=True):
        tensors = {"x": latent, "t": torch.tensor(timestep), "context": context}
        call = DenoiserCall(caller, "", graphs, tensors, CallForm((), {}, {}))
        stream = streams.of(call, lambda: None)
        running = stream.trajectory
        found.append(running.mode_now)
        runs = running.runs()
        for run in runs:
            running.inputs_at(run.call, graph, tensors, tensors)  # which predicts
        running.correct([output])
        running.done(runs)
        streams.done(stream, call, None, running.reason)
    return found


def stepped(scheduler: Any, change: Callable[[int, torch.Tensor], torch.Tensor] = lambda _call, latent: latent) -> Any:
    """The latents that a scheduler makes of one and the same output; change: what is done to each."""
    latent, output = torch.randn(2, 2, 5, engines.WIDTH, generator=torch.Generator().manual_seed(0)).unbind(0)
    passed = []
    for call, timestep in enumerate(scheduler.timesteps):
        latent = change(call, latent)
        passed.append(
            scheduler.scale_model_input(latent, timestep) if hasattr(scheduler, "scale_model_input") else latent
        )
        latent = scheduler.step(output, timestep, latent)[0]
    return passed


def ddim(steps: int) -> Any:
    return scheduler_of("DDIMScheduler", {**BETAS, "clip_sample": False}, steps)


@pytest.mark.parametrize("correct", [True, False])
def test_the_guard_reads_outputs_that_the_pipeline_turns_round(correct: bool) -> None:
    def shake(call: int, latent: torch.Tensor) -> torch.Tensor:  # so that predictions miss a little
        return latent + 1e-3 * torch.randn(latent.shape, generator=torch.Generator().manual_seed(call))

    scheduler = ddim(10)
    latents = stepped(scheduler, shake)
    output = torch.randn(2, 2, 5, engines.WIDTH, generator=torch.Generator().manual_seed(0))[1]  # as ``stepped`` has it
    passed = [float(timestep) for timestep in scheduler.timesteps]
    as_it_is, turned = (
        modes(scheduler, latents, passed, sign * output, quality=65.0, correct=correct) for sign in (1.0, -1.0)
    )
    assert turned == as_it_is
    assert {"exact", "lookahead"} == set(turned[2:])


@pytest.mark.parametrize("quality", [None, 40.0])
def test_a_latent_that_was_changed_is_run_exactly_and_look_ahead_goes_on_behind_it(quality: float | None) -> None:
    scheduler = ddim(10)
    latents = stepped(scheduler, lambda call, latent: latent * 0.5 if call == 5 else latent)
    wanted = ["exact"] * 2 + ["lookahead"] * 3 + ["exact"] * 2 + ["lookahead"] * 3
    assert modes(scheduler, latents, scheduler.timesteps.tolist(), quality=quality) == wanted


@pytest.mark.parametrize("changed", ["latent", "prompt"])
def test_what_begins_anew_has_what_is_left_of_the_bound(changed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    guards: list[Guard] = []

    class Kept(Guard):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            guards.append(self)

    def change(call: int, latent: torch.Tensor) -> torch.Tensor:
        if call == 8 and changed == "latent":
            return latent * 0.3
        return latent + 1e-3 * torch.randn(latent.shape, generator=torch.Generator().manual_seed(call))

    monkeypatch.setattr(latents_ahead, "Guard", Kept)
    scheduler = ddim(20)
    latents, passed = stepped(scheduler, change), scheduler.timesteps.tolist()
    prompts = [torch.full((2, 6), float(call >= 8 and changed == "prompt")) for call in range(20)]
    found = modes(scheduler, latents, passed, prompts=prompts, quality=40.0)
    assert found[7:10] == ["lookahead", "exact", "exact"]
    before, after = guards
    spent = float((before._worth * before._errors).sum(0).max())
    assert after._share * 12 == pytest.approx(bound_of(40.0) - spent)
    assert after._share < bound_of(40.0) / 12
    modes(scheduler, latents, passed, quality=40.0)
    assert guards[2]._share == pytest.approx(bound_of(40.0) / 20), "the next generation has all of it"


def test_without_a_guard_a_gpus_changed_latent_is_noticed_one_call_later_and_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(latents_ahead, "is_late", lambda tensor: True)
    scheduler = ddim(12)
    latents = stepped(scheduler, lambda call, latent: latent * 0.5 if call == 5 else latent)
    wanted = ["exact"] * 2 + ["lookahead"] * 4 + ["exact"] * 2 + ["lookahead"] * 4
    assert modes(scheduler, latents, scheduler.timesteps.tolist()) == wanted


@pytest.mark.parametrize("changed", [8, 9])
def test_with_two_calls_per_step_look_ahead_goes_on_behind_a_change_too(changed: int) -> None:
    scheduler = scheduler_of("HeunDiscreteScheduler", BETAS, 10)
    latents = stepped(scheduler, lambda call, latent: latent * 0.3 if call == changed else latent)
    wanted = ["exact"] * 2 + ["lookahead"] * (changed - 2) + ["exact"] * 2
    wanted += ["lookahead"] * (17 - len(wanted)) + ["exact"] * 2
    assert modes(scheduler, latents, scheduler.timesteps.tolist()) == wanted
    guarded = modes(scheduler, latents, scheduler.timesteps.tolist(), quality=26.0)
    assert guarded[: changed + 2] == wanted[: changed + 2]
    assert "lookahead" in guarded[changed + 2 :]


def test_noise_that_only_the_pipeline_asks_for_is_seen_from_the_latents() -> None:
    """DDIM with eta = 1, and the best denoiser of Gaussian data: no latent can be foreseen."""
    scheduler, generator = ddim(12), torch.Generator().manual_seed(1)
    latent = torch.randn(2, 5, engines.WIDTH, generator=generator)
    latents = []
    for timestep in scheduler.timesteps:
        latents.append(latent)
        output = latent * (1 - scheduler.alphas_cumprod[timestep]).sqrt()
        latent = scheduler.step(output, timestep, latent, eta=1.0, generator=generator)[0]
    assert modes(scheduler, latents, scheduler.timesteps.tolist()) == ["exact"] * 12


def test_that_look_ahead_is_not_possible_is_said_with_the_reason(caplog: Any) -> None:
    scheduler = scheduler_of("EulerAncestralDiscreteScheduler", BETAS, 6)
    latents = [torch.randn(2, 5, engines.WIDTH) for _ in range(6)]
    assert modes(scheduler, latents, scheduler.timesteps.tolist()) == ["exact"] * 2 + ["async"] * 4
    assert "it adds noise of its own in its steps. The trajectory runs in async mode." in caplog.text
    assert modes(scheduler, latents, scheduler.timesteps.tolist(), quality=1.0) == ["exact"] * 6
    assert "it adds noise of its own in its steps. All calls are run exactly" in caplog.text


@pytest.mark.parametrize("mode", ["lookahead", "async"])
def test_timesteps_that_rise_as_the_scheduler_says_go_on(mode: str) -> None:
    """As Lumina's pipelines pass 1 - t/1000."""
    scheduler = scheduler_of("FlowMatchEulerDiscreteScheduler", {}, 6)
    latents, passed = stepped(scheduler), (1 - scheduler.timesteps / 1000).tolist()
    assert modes(scheduler, latents, passed, mode=mode) == ["exact"] * 2 + [mode] * 4


def test_timesteps_that_go_up_and_down_as_the_scheduler_says_go_on() -> None:
    scheduler = scheduler_of("KDPM2AncestralDiscreteScheduler", BETAS, 10)
    passed = scheduler.timesteps.tolist()
    assert any(later > earlier for earlier, later in pairwise(passed))
    latents = [torch.randn(2, 5, engines.WIDTH) for _ in passed]
    assert modes(scheduler, latents, passed) == ["exact"] * 2 + ["async"] * 17


def test_the_same_timesteps_once_more_are_another_trajectory() -> None:
    scheduler = scheduler_of("FlowMatchEulerDiscreteScheduler", {}, 5)
    latents, passed = stepped(scheduler), (1 - scheduler.timesteps / 1000).tolist()
    assert modes(scheduler, latents * 2, passed * 2, mode="async") == (["exact"] * 2 + ["async"] * 3) * 2


def test_in_half_precision_later_timesteps_have_the_bits_that_the_pipeline_makes() -> None:
    """Also where it computes them in float32 and rounds the result, as the first calls may not have shown."""
    scheduler = scheduler_of("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, 50)
    passed, context = (scheduler.timesteps / 1000).bfloat16(), torch.zeros(2, 6)
    running = Trajectory(0, RunMode(components=2, mode="lookahead", warmup=2, periods=(1, 1)))
    graph, later = GRAPHS[2](), {}
    for call, latent in enumerate(stepped(scheduler)[:20]):
        tensors = {"x": latent, "t": passed[call], "context": context}
        if call == 0:
            running.start(graph, tensors, float(passed[0]), scheduler)
        else:
            running.take(tensors)
        runs = running.runs()
        later |= {run.call: running.inputs_at(run.call, graph, tensors, [])["t"] for run in runs if run.call > call}
        running.done(runs)
    assert list(later) == list(range(2, 21))
    assert torch.equal(torch.stack([later[call] for call in range(12, 21)]), passed[12:21])
