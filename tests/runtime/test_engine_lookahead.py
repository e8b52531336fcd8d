"""Look-ahead through the engine, in a real pipeline: what is read belongs to one call, on every transport."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from partitioner.models.find_spec import live_spec
from partitioner.plan.plan import Plan
from runtime import parallelize
from runtime.driver.denoiser_changes import DenoiserChange, DenoiserChanges
from runtime.driver.output_forecast import OutputForecast
from runtime.engine import Engine
from runtime.errors import InputError
from runtime.options import EngineOptions
from tests.support import pipelines
from tests.support.plans import plan_simply

pytestmark = pytest.mark.usefixtures("trace_once")

STEPS = 9


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("lookahead")
    return pipelines.load(pipelines.saved("stable_diffusion", folder))


@pytest.fixture(scope="module")
def plans(pipe: Any) -> dict[int, Plan]:
    """components -> a look-ahead plan of one branch."""
    spec = live_spec(pipe.unet, pipe, height=32, width=32)
    made = {}
    for components in (2, 3):
        made[components] = plan_simply(spec, components, branches=1, mode="lookahead", warmup=3).plan
        assert made[components].components == components
    return made


@pytest.fixture(autouse=True)
def own_scheduler(pipe: Any) -> Iterator[None]:
    before = pipe.scheduler
    yield
    pipe.scheduler = before


def latents_passed(pipe: Any) -> list[torch.Tensor]:
    """What the unmodified pipeline passes to its denoiser, call by call."""
    passed = []
    hook = pipe.unet.register_forward_pre_hook(lambda _module, args: passed.append(args[0].clone()))
    try:
        pipelines.call(pipe, steps=STEPS)
    finally:
        hook.remove()
    return passed


def test_another_default_dtype_of_torch_changes_no_prediction(pipe: Any, plans: dict[int, Plan]) -> None:
    made = []
    with parallelize(pipe, plans[2], transport="emulation", quality="off") as engine:
        for dtype in (torch.float32, torch.float64):
            torch.set_default_dtype(dtype)
            try:
                made.append(pipelines.call(pipe, steps=STEPS))
            finally:
                torch.set_default_dtype(torch.float32)
        assert engine.stats.lookahead_steps == 2 * (STEPS - 3)
    assert torch.allclose(*made, atol=1e-3)  # the scheduler rounds its noise levels otherwise


@pytest.mark.parametrize("components", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_with_true_latents_foreseen_the_output_is_the_pipelines_own(
    pipe: Any, plans: dict[int, Plan], components: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So everything that a component reads belongs to its call: all that can be wrong is the prediction."""
    expected = pipelines.call(pipe, steps=STEPS)
    truth = latents_passed(pipe)
    asked = []

    def predict(_self: OutputForecast, call: int) -> torch.Tensor:
        asked.append(call)
        return truth[call]

    monkeypatch.setattr(OutputForecast, "predict", predict)
    with parallelize(pipe, plans[components], transport="emulation", microbatches=1) as engine:
        assert torch.equal(pipelines.call(pipe, steps=STEPS), expected)
        assert engine.stats.mode == "lookahead"
        stats = engine.stats
    warmup = max(3, components)
    assert (stats.steps, stats.exact_steps, stats.lookahead_steps) == (STEPS, warmup, STEPS - warmup)
    assert asked == list(range(warmup, STEPS)), "only the first component reads it, so that it is foreseen once"


@pytest.mark.processes
@pytest.mark.parametrize("components", [2, 3])
def test_every_transport_gives_the_same_bits_again_and_again(
    pipe: Any, plans: dict[int, Plan], components: int
) -> None:
    outputs = []
    for transport in ("emulation", "threads", "processes"):
        with parallelize(pipe, plans[components], transport=transport) as engine:
            outputs += [pipelines.call(pipe, steps=STEPS), pipelines.call(pipe, steps=STEPS)]
            assert engine.stats.mode == "lookahead"
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    exact = pipelines.call(pipe, steps=STEPS)
    assert not torch.equal(outputs[0], exact)
    with parallelize(pipe, plans[components], transport="emulation", mode="async", predictor="hold"):
        held = pipelines.call(pipe, steps=STEPS)
    # random weights are no denoiser, whose sensitivity the correction takes
    with parallelize(pipe, plans[components], transport="emulation", correct=False):
        ahead = pipelines.call(pipe, steps=STEPS)
    assert float((ahead - exact).norm()) < 0.5 * float((held - exact).norm())


@pytest.mark.processes
@pytest.mark.parametrize("components", [2, 3])
def test_the_last_calls_of_a_sampler_of_two_calls_are_exact(pipe: Any, plans: dict[int, Plan], components: int) -> None:
    import diffusers

    pipe.scheduler = diffusers.HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    outputs = []
    for transport in ("emulation", "processes"):
        with parallelize(pipe, plans[components], transport=transport) as engine:
            outputs += [pipelines.call(pipe, steps=STEPS), pipelines.call(pipe, steps=STEPS)]
            assert engine.stats.mode == "lookahead"
            assert engine.stats.steps == 2 * (2 * STEPS - 1)
            reasons = engine.stats.exact_reasons
            assert (reasons["warm-up"], reasons["last calls of the sampler"]) == (2 * 3, 2 * 2)
    assert reasons["quality guard"] > 0  # and so its restarts are the same over processes
    assert all(torch.equal(output, outputs[0]) for output in outputs)


@pytest.mark.parametrize(
    "name", ["EulerAncestralDiscreteScheduler", pytest.param("LCMScheduler", marks=pytest.mark.slow)]
)
def test_with_a_sampler_that_adds_noise_calls_are_exact_and_without_a_guard_async(
    pipe: Any, plans: dict[int, Plan], name: str
) -> None:
    import diffusers

    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    expected = pipelines.call(pipe, steps=STEPS)
    with parallelize(pipe, plans[2], transport="emulation", microbatches=1) as engine:
        assert torch.equal(pipelines.call(pipe, steps=STEPS), expected)
        assert engine.stats.exact_reasons == {"later latents cannot be predicted": STEPS}
    with parallelize(pipe, plans[2], transport="emulation", quality="off") as engine:
        output = pipelines.call(pipe, steps=STEPS)
        assert engine.stats.mode == "async"
    assert torch.isfinite(output).all()


def test_a_latent_that_a_callback_changes_is_computed_exactly(pipe: Any, plans: dict[int, Plan]) -> None:
    """And the pipe is filled again behind it."""

    def halve(_pipe: Any, step: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        return {"latents": values["latents"] * 0.5} if step == 4 else values

    expected = pipelines.call(pipe, steps=STEPS, callback_on_step_end=halve)
    with parallelize(pipe, plans[2], transport="emulation", correct=False, quality="off") as engine:
        output = pipelines.call(pipe, steps=STEPS, callback_on_step_end=halve)
        stats = engine.stats
    assert (stats.exact_steps, stats.lookahead_steps, stats.async_steps) == (3 + 2, STEPS - 5, 0)
    assert float((output - expected).norm()) < 0.02 * float(expected.norm())


def test_the_guard_makes_calls_exact_until_the_quality_is_there(pipe: Any, plans: dict[int, Plan]) -> None:
    """And ``engine.stats`` says how many."""
    expected = pipelines.call(pipe, steps=STEPS)
    errors, guarded = [], []
    for quality in ("off", "good", "indistinguishable", 120.0):
        with parallelize(pipe, plans[2], transport="emulation", quality=quality, microbatches=1) as engine:
            errors.append(float((pipelines.call(pipe, steps=STEPS) - expected).norm()))
            guarded.append(engine.stats.exact_reasons.get("quality guard", 0))
    assert guarded[0] == 0
    assert guarded == sorted(guarded)
    assert guarded[-1] == STEPS - 3
    assert errors[-1] == 0.0
    assert errors[0] > errors[2]


def test_all_parameters_are_read_once_per_trajectory_however_many_calls_the_guard_makes_exact(
    pipe: Any, plans: dict[int, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, read = DenoiserChanges.found, []
    seems_changed, looked = DenoiserChanges.seems_changed, []

    def counted(changes: DenoiserChanges, *, thorough: bool) -> DenoiserChange | None:
        read.append(thorough)
        return found(changes, thorough=thorough)

    monkeypatch.setattr(DenoiserChanges, "found", counted)
    monkeypatch.setattr(DenoiserChanges, "seems_changed", lambda changes: (looked.append(1), seems_changed(changes))[1])
    with parallelize(pipe, plans[2], transport="emulation", quality=120.0) as engine:
        for _ in range(2):
            pipelines.call(pipe, steps=STEPS)
        assert engine.stats.exact_reasons["quality guard"] >= 2
    assert read.count(True) == 2
    assert read.count(False) + len(looked) >= 2 * STEPS


def test_exact_calls_in_the_plans_micro_batches_differ_in_the_last_bits(pipe: Any, plans: dict[int, Plan]) -> None:
    assert plans[2].microbatches == 2
    outputs = []
    for parts in (None, 1):
        with parallelize(pipe, plans[2], transport="emulation", microbatches=parts) as engine:
            outputs.append(pipelines.call(pipe, steps=STEPS))
            assert engine.stats.exact_steps >= 3
    assert 0 < float((outputs[0] - outputs[1]).norm()) < 1e-4 * float(outputs[1].norm())


@pytest.mark.parametrize("quality", ["fine", -3.0, 0, float("nan"), float("inf"), True])
def test_a_quality_that_is_none_is_refused_before_anything_starts(
    pipe: Any, plans: dict[int, Plan], quality: Any
) -> None:
    with (
        pytest.raises(InputError, match="a PSNR in dB above 0 and at most 1000; got"),
        parallelize(pipe, plans[2], transport="emulation", quality=quality),
    ):
        pass


@pytest.mark.slow
def test_an_abandoned_trajectory_leaves_nothing_to_the_next(pipe: Any, plans: dict[int, Plan]) -> None:
    def stop(running: Any, step: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        running._interrupt = step >= 4
        return values

    with parallelize(pipe, plans[3], transport="threads"):
        expected = pipelines.call(pipe, steps=STEPS)
        pipelines.call(pipe, steps=STEPS, seed=5, callback_on_step_end=stop)
        assert torch.equal(pipelines.call(pipe, steps=STEPS), expected)


@pytest.mark.processes
@pytest.mark.parametrize(("quality", "mode"), [("good", "exact"), ("off", "async")])
def test_a_denoiser_without_a_scheduler_is_run_exactly_and_without_a_guard_async(
    pipe: Any, plans: dict[int, Plan], quality: str, mode: str
) -> None:
    latent = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with Engine(pipe.unet, plans[2], EngineOptions(quality=quality)) as engine:
        for timestep in (900, 700, 500, 300):
            engine(latent * timestep / 1000, timestep, encoder_hidden_states=torch.zeros(2, 16, 32))
        assert engine.stats.mode == mode


@pytest.mark.processes
def test_another_timestep_than_foreseen_starts_over(pipe: Any, plans: dict[int, Plan]) -> None:
    scheduler = pipe.scheduler
    scheduler.set_timesteps(8)
    prompt = torch.randn(2, 16, 32)
    latent = torch.randn(2, 4, 16, 16)
    with Engine(pipe.unet, plans[2], scheduler=lambda: scheduler) as engine, torch.no_grad():
        for call in range(5):
            engine(latent, scheduler.timesteps[call], encoder_hidden_states=prompt)
        assert engine.stats.exact_steps == 3
        strange = scheduler.timesteps[7] - 20
        output = engine(latent, strange, encoder_hidden_states=prompt)[0]
        assert engine.stats.exact_steps == 4
    with torch.no_grad():
        expected = pipe.unet(latent, strange, encoder_hidden_states=prompt, return_dict=False)[0]
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
