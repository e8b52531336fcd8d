"""parallelize in real diffusers pipelines: the unmodified pipeline's output, lagged output, and what is left behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from partitioner.models.find_spec import model_spec
from partitioner.models.spec import trace_model
from partitioner.plan.plan import Plan
from partitioner.plan.ranks import seat_of
from runtime import parallelize
from runtime.denoiser import denoiser_name
from runtime.errors import InputError, PlanMismatch
from runtime.worker.specs import build_specs
from tests.support import pipelines, undescribed_pipelines
from tests.support.engines import plan_of
from tests.support.plans import plan_simply

pytestmark = pytest.mark.usefixtures("trace_once")

SIZES: dict[str, dict[str, int]] = {
    "stable_diffusion": {"height": 32, "width": 32},
    "stable_diffusion_xl": {"height": 32, "width": 32},
    "stable_video_diffusion": {"height": 32, "width": 32, "frames": 2},
    "animatediff": {"height": 32, "width": 32, "frames": 2},
    "stable_diffusion_3": {"height": 32, "width": 32},
    "flux": {"height": 32, "width": 32},
}
STEPS, WARMUP = 5, 2
XL = "stable_diffusion_xl"  # a UNet as Stable Diffusion's, with one more input
QUICK = {"stable_diffusion", "flux"}  # a UNet and a transformer: what is not tried with all, or not in the quick suite


@dataclass
class Case:
    """A pipeline, loaded from its folder, and plans for it; all made when first used."""

    name: str
    parent: Path
    _plans: dict[tuple[int, int], Plan] = field(default_factory=dict)

    @cached_property
    def folder(self) -> Path:
        return pipelines.saved(self.name, self.parent)

    @cached_property
    def pipe(self) -> Any:
        return self.load()

    def load(self) -> Any:
        return pipelines.load(self.folder)

    @property
    def denoiser(self) -> nn.Module:
        denoiser: nn.Module = getattr(self.pipe, denoiser_name(self.pipe))
        return denoiser

    @cached_property
    def _spec(self) -> Any:
        return model_spec(str(self.folder), dtype="float32", **SIZES[self.name])

    @cached_property
    def _whole(self) -> Any:
        return trace_model(self._spec)

    @cached_property
    def _half(self) -> Any:
        return trace_model(self._spec, rows=self._spec.step.rows // 2)

    def plan(self, devices: int, branches: int = 1) -> Plan:
        """In async mode."""
        if (devices, branches) not in self._plans:
            self._plans[devices, branches] = self._make_plan(devices, branches)
        return self._plans[devices, branches]

    def _make_plan(self, devices: int, branches: int) -> Plan:
        """Solved for one branch; the planner's own choice of branches is tested with it."""
        graph, components = (self._whole, devices) if branches == 1 else (self._half, devices // 2)
        solved = plan_simply(graph, components, branches=1, mode="async").chosen
        assert solved.components == components
        return plan_of(graph, solved.placed, branches=branches, warmup=WARMUP, predictor="adaptive")

    def call(self, **options: Any) -> torch.Tensor:
        return pipelines.call(self.pipe, **{"steps": STEPS, **options})


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return {name: Case(name, tmp_path_factory.mktemp(name)) for name in pipelines.MAKERS}


@pytest.fixture(
    scope="module",
    params=[f"{name} {ranks}" for name in SIZES if name != XL for ranks in ((2, 3) if name in QUICK else (2,))],
)
def planned(request: pytest.FixtureRequest, cases: dict[str, Case]) -> tuple[Case, Plan]:
    name, ranks = request.param.split()
    return cases[name], cases[name].plan(int(ranks))


@pytest.mark.processes
def test_every_pipeline_runs_exactly_and_lagged_over_processes_as_emulated(
    planned: tuple[Case, Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    """One engine of each kind for all that is asked of both: starting processes is what takes time."""
    case, plan = planned
    own, exact_only = case.call(), case.call(steps=WARMUP)
    with parallelize(case.pipe, plan, transport="emulation") as engine:
        assert torch.equal(case.call(steps=WARMUP), exact_only), "warm-up is the unmodified pipeline, bit for bit"
        emulated = case.call()
        assert torch.equal(case.call(), emulated), "a second call equals the first, without a reset"
        other_seed = case.call(seed=1)
        assert engine.stats.steps == WARMUP + 3 * STEPS
    with parallelize(case.pipe, plan) as engine:
        difference = float((case.call(steps=WARMUP) - exact_only).abs().max())
        assert torch.equal(case.call(), emulated), "bit-equal to emulation"
        assert torch.equal(case.call(seed=1), other_seed)
        assert torch.equal(case.call(), emulated)
        stats = engine.stats
    with capsys.disabled():
        print(
            f"\n{case.name}, {plan.ranks} ranks: exact over processes differs by {difference:.1e} at most, "
            f"async by {float((emulated - own).abs().max()):.1e}",
            end="",
        )
    assert difference < 1e-4
    assert not torch.equal(emulated, own), "nothing was lagged"
    assert (stats.steps, stats.exact_steps) == (WARMUP + 3 * STEPS, 4 * WARMUP)
    _check_parameters(case, plan, [report.parameter_bytes for report in stats.ranks])


def _check_parameters(case: Case, plan: Plan, held: list[int]) -> None:
    """Each rank holds what its component's nodes read, the driver the preamble's besides, and nobody more."""
    graph = case._whole
    specs, preamble = build_specs(graph, plan.place(graph), plan.components)
    paths = [{p.path for p in specs[seat_of(rank, plan.components)[1]].parameters} for rank in range(plan.ranks)]
    paths[0] |= {p.path for p in preamble.parameters}
    state = {**dict(case.denoiser.named_parameters()), **dict(case.denoiser.named_buffers())}
    for size, found in zip(held, paths, strict=True):
        read = sum(state[path].nbytes for path in found)
        assert read <= size < read + 64 * len(found)  # where a tensor begins may take a cache line
    assert sum(held) <= 1.02 * sum(tensor.nbytes for tensor in state.values())
    assert set().union(*paths) >= {path for path, _ in case.denoiser.named_parameters()}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in pipelines.MAKERS],
)
def test_exact_mode_is_the_unmodified_pipeline_for_all_steps(cases: dict[str, Case], name: str) -> None:
    case = cases[name]
    own, other = case.call(), case.call(steps=3, seed=1)
    with parallelize(case.pipe, case.plan(3), transport="emulation", exact=True) as engine:
        assert torch.equal(case.call(), own)
        assert torch.equal(case.call(steps=3, seed=1), other)
        assert engine.stats.exact_steps == engine.stats.steps == STEPS + 3


# ---- what a user may change from call to call, on one pipeline


@pytest.fixture(scope="module")
def case(cases: dict[str, Case]) -> Case:
    return cases["stable_diffusion"]


@pytest.fixture(scope="module")
def exactly(case: Case) -> Iterator[Any]:
    """Another pipeline of the case, in exact mode: whatever it is asked for, the unmodified one is its oracle."""
    pipe = case.load()
    with parallelize(pipe, case.plan(2), transport="emulation", exact=True):
        yield pipe


@pytest.mark.parametrize(
    "options",
    [
        {"guidance_scale": 1.0},
        pytest.param({"guidance_scale": 1.0, "num_images_per_prompt": 2}, marks=pytest.mark.slow),
        pytest.param({"height": 64, "width": 32}, marks=pytest.mark.slow),
        {"height": 48, "width": 48},
        {"num_images_per_prompt": 2},
        {"prompt": "a blue dog on the moon"},
        {"negative_prompt": "red"},
        {"eta": 0.5},
        {"guidance_rescale": 0.5},
    ],
    ids=str,
)
def test_other_calls_than_the_plans_are_traced_and_placed_alike(
    case: Case, exactly: Any, options: dict[str, Any]
) -> None:
    assert torch.equal(pipelines.call(exactly, steps=3, **options), case.call(steps=3, **options))


@pytest.mark.parametrize(
    "name",
    [
        "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler",
        "DPMSolverMultistepScheduler", "PNDMScheduler",
    ],
)  # fmt: skip
def test_another_scheduler_may_be_put_in(case: Case, exactly: Any, name: str) -> None:
    """Their timesteps differ in type: int64, float32, float64."""
    import diffusers

    before = case.pipe.scheduler
    try:
        for pipe in (case.pipe, exactly):
            pipe.scheduler = getattr(diffusers, name).from_config(before.config)
        assert torch.equal(pipelines.call(exactly, steps=4), case.call(steps=4))
    finally:
        case.pipe.scheduler = exactly.scheduler = before


def test_image_to_image_starts_in_the_middle_of_the_schedule(case: Case) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    pipe = StableDiffusionImg2ImgPipeline(**case.load().components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    options = {"image": torch.linspace(0, 1, 3 * 32 * 32).view(1, 3, 32, 32), "strength": 0.6, "steps": 10}
    own = pipelines.call(pipe, **options)
    with parallelize(pipe, case.plan(2), transport="emulation") as engine:
        first = pipelines.call(pipe, **options)
        assert (engine.stats.steps, engine.stats.exact_steps) == (6, WARMUP)
        assert torch.equal(pipelines.call(pipe, **options), first)
    assert not torch.equal(first, own)
    with parallelize(pipe, case.plan(2), transport="emulation", warmup=6):
        assert torch.equal(pipelines.call(pipe, **options), own)


def test_what_changes_between_lagged_calls_is_noticed(case: Case) -> None:
    """Guidance, size, prompt and seed in turns; each call gives what it gives alone."""
    calls: list[dict[str, Any]] = [
        {}, {"guidance_scale": 1.0}, {"prompt": "a blue dog"}, {"height": 48}, {"num_images_per_prompt": 2},
        {"steps": 3},
    ]  # fmt: skip
    pipe, plan = case.load(), case.plan(2)
    with parallelize(pipe, plan, transport="emulation") as engine:
        first = [pipelines.call(pipe, **options) for options in calls]
        again = [pipelines.call(pipe, **options) for options in reversed(calls)]
        assert engine.stats.exact_steps == 2 * len(calls) * WARMUP
    for one, other in zip(first, reversed(again), strict=True):
        assert torch.equal(one, other)


@pytest.mark.processes
def test_two_branches_are_exact_and_the_same_over_processes(cases: dict[str, Case]) -> None:
    for name in ("stable_diffusion", "stable_video_diffusion", "stable_diffusion_3"):  # UNets, a transformer
        case = cases[name]
        pipe, plan = case.load(), case.plan(2, branches=2)
        assert (plan.branches, plan.components) == (2, 1)
        own = pipelines.call(pipe)
        with parallelize(pipe, plan, transport="emulation"):
            emulated = pipelines.call(pipe)
        assert float((emulated - own).abs().max()) < 1e-4 * max(1.0, float(own.abs().max()))
        if name == "stable_diffusion":
            with parallelize(pipe, plan):
                assert torch.equal(pipelines.call(pipe), emulated)
                without_guidance = pipelines.call(pipe, guidance_scale=1.0)
            assert torch.equal(without_guidance, pipelines.call(pipe, guidance_scale=1.0)), "one branch does all of it"


@pytest.mark.slow
def test_two_branches_of_two_components_lag_within_each(case: Case) -> None:
    pipe, plan = case.load(), case.plan(4, branches=2)
    assert (plan.branches, plan.components) == (2, 2)
    own = pipelines.call(pipe)
    with parallelize(pipe, plan, transport="threads"):
        lagged = pipelines.call(pipe)
        assert torch.equal(pipelines.call(pipe), lagged)
    assert not torch.equal(lagged, own)
    with parallelize(pipe, plan, transport="threads", warmup=STEPS):
        assert float((pipelines.call(pipe) - own).abs().max()) < 1e-4
    with parallelize(pipe, plan, transport="emulation"):
        assert torch.equal(pipelines.call(pipe), lagged)


# ---- the denoiser's place


def test_the_denoiser_stays_in_its_place(case: Case, tmp_path: Path) -> None:
    pipe, plan = case.load(), case.plan(2)
    plan.save(tmp_path / "a.plan.json")
    denoiser, before = pipe.unet, dict(vars(pipe.unet))
    with parallelize(pipe, tmp_path / "a.plan.json", transport="emulation") as engine:
        assert pipe.unet is denoiser
        assert sum(parameter.numel() for parameter in pipe.unet.parameters()) == denoiser.num_parameters()
        pipelines.call(pipe, steps=1)
        assert engine.stats.steps == 1
    assert pipe.unet is denoiser
    assert vars(denoiser) == before


def test_the_denoiser_is_put_back_when_the_body_raises(case: Case) -> None:
    pipe = case.load()
    before = dict(vars(pipe.unet))
    with pytest.raises(ZeroDivisionError), parallelize(pipe, case.plan(2), transport="emulation"):
        raise ZeroDivisionError
    assert vars(pipe.unet) == before


def test_return_dict_and_timesteps_are_as_the_denoiser_takes_them(exactly: Any, case: Case) -> None:
    sample, prompt = torch.randn(2, 4, 16, 16), torch.randn(2, 16, 32)
    with torch.no_grad():
        for timestep in (981, 981.0, torch.tensor(981), torch.tensor(981.0), torch.tensor(981.0, dtype=torch.float64)):
            expected = case.denoiser(sample, timestep, prompt)
            got = exactly.unet(sample, timestep, prompt)
            assert type(got) is type(expected)
            assert torch.equal(got.sample, expected.sample)
            plain = exactly.unet(sample, timestep, encoder_hidden_states=prompt, return_dict=False)
            assert isinstance(plain, tuple)
            assert torch.equal(plain[0], expected.sample)
        positional = exactly.unet(sample, 981, prompt, None, None, None, None, None, None, None, None, None, False)
        assert isinstance(positional, tuple)


def test_a_call_that_the_denoiser_does_not_take_is_refused_in_words(exactly: Any) -> None:
    arguments = {"sample": torch.randn(2, 4, 16, 16), "timestep": 1, "encoder_hidden_states": torch.randn(2, 16, 32)}
    with pytest.raises(InputError, match=r"cannot be traced for this call.*differs from the plan's calls"):
        exactly.unet(**{**arguments, "sample": torch.randn(2, 3, 16, 16)})


# ---- a plan for the denoiser as it is


@pytest.mark.slow
def test_a_plan_on_the_fly_is_one_for_the_denoiser_in_memory(case: Case) -> None:
    """All at once: each of these makes another graph, or another path, than the class has by itself."""
    from peft import LoraConfig

    pipe = case.load()
    pipe.unet.fuse_qkv_projections()
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_out.0"], init_lora_weights=False))
    pipe.unet.down_blocks[0].register_forward_hook(lambda _module, _args, output: (2 * output[0], output[1]))
    pipe.unet.register_forward_pre_hook(lambda _module, args: (args[0] / 2, *args[1:]))
    call: dict[str, Any] = {"guidance_scale": 1.0, "steps": 3, "height": 32, "width": 32}
    own = pipelines.call(pipe, **call)
    sizes = {"guidance": False, "height": 32, "width": 32}
    with parallelize(pipe, devices=2, sizes=sizes, transport="emulation", exact=True) as engine:
        assert torch.equal(pipelines.call(pipe, **call), own)
        assert engine.stats.steps == 3
    assert torch.equal(pipelines.call(pipe, **call), own)
    assert not torch.equal(case.call(**call), own)


# ---- what is refused


def test_a_plan_for_another_pipeline_is_refused_before_it_is_touched(cases: dict[str, Case]) -> None:
    plan = cases["stable_diffusion"].plan(2)
    for name in cases.keys() - {"stable_diffusion", "stable_diffusion_xl"}:
        pipe = cases[name].load()
        denoiser = getattr(pipe, denoiser_name(pipe))
        with pytest.raises(PlanMismatch, match=r"made for .*UNet2DConditionModel.*make a plan for") as caught:
            parallelize(pipe, plan).__enter__()
        assert "\n" not in str(caught.value)
        assert getattr(pipe, denoiser_name(pipe)) is denoiser


@pytest.mark.slow
def test_a_plan_for_other_arguments_of_the_same_class_is_tried_at_the_first_call(
    cases: dict[str, Case], caplog: pytest.LogCaptureFixture
) -> None:
    pipe, call = cases["stable_diffusion_xl"].load(), {"steps": 3, "height": 32, "width": 32}
    own = pipelines.call(pipe, **call)
    with parallelize(pipe, cases["stable_diffusion"].plan(2), transport="emulation", exact=True):
        assert "its first call will be traced instead" in caplog.text
        assert torch.equal(pipelines.call(pipe, **call), own)


def test_a_pipeline_is_parallelized_once_at_a_time(exactly: Any, case: Case) -> None:
    with pytest.raises(InputError, match="already inside a parallelize block"):
        parallelize(exactly, case.plan(2)).__enter__()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["aura_flow", "cogview_4"])
def test_a_pipeline_that_no_description_knows_is_planned_and_run(name: str, tmp_path: Path) -> None:
    pipe = undescribed_pipelines.made(name, tmp_path)

    def made() -> torch.Tensor:
        given = {"generator": torch.Generator().manual_seed(0), "height": 32, "width": 32, "output_type": "latent"}
        result: torch.Tensor = pipe("a red cat", num_inference_steps=4, **given).images
        return result

    alone = made()
    sizes = {"height": 32, "width": 32}
    with parallelize(pipe, devices=2, sizes=sizes, exact=True, transport="emulation"):
        assert (made() - alone).abs().max() < 1e-4
    assert torch.equal(made(), alone)
