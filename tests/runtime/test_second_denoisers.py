"""Second denoisers: the ranks run them too, by the same plan or by plans of their own, or their calls are told."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import partitioner.cli
import runtime.cli
from partitioner.plan.pipeline_plans import PipelinePlans
from runtime import parallelize
from runtime.driver.distribution import Distribution
from runtime.errors import EngineError, InputError, PlanMismatch
from runtime.second_denoisers import second_denoisers
from tests.support.engines import Trajectory, toy, toy_plan
from tests.support.toy_sampling import ToyScheduler
from tests.support.trouble import wait_until
from tools.support.pipelines import PIPELINES
from tools.support.tries import largest_difference


class TwoDenoisers:
    """As Wan 2.2's pipeline: the first steps are one denoiser's, the others the other one's."""

    def __init__(self) -> None:
        self.transformer, self.transformer_2 = toy(), toy()
        with torch.no_grad():
            for parameter in self.transformer_2.parameters():
                parameter.mul_(1.5)
        self.scheduler, self.vae, self.controlnet = ToyScheduler(), nn.Identity(), toy().down[0]

    def __call__(self, first: int, calls: int) -> list[torch.Tensor]:
        trajectory, made = Trajectory(calls), []
        with torch.no_grad():
            for call in range(calls):
                denoiser = self.transformer if call < first else self.transformer_2
                made.append(denoiser(**trajectory.inputs(call)))
        return made


def warnings(caplog: Any) -> list[Any]:
    return [record for record in caplog.records if record.name == "runtime"]


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(a[0], b[0]) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("transport", ["emulation", "threads", pytest.param("processes", marks=pytest.mark.processes)])
def test_one_plan_runs_both(transport: str, caplog: Any) -> None:
    pipe = TwoDenoisers()
    before = [tensor.clone() for tensor in pipe.transformer_2.parameters()]
    expected = pipe(3, 7)
    with parallelize(pipe, toy_plan(pipe.transformer), transport=transport, exact=True) as engine:
        assert same(pipe(3, 7), expected)
        stats = engine.stats
        assert (stats.steps, stats.uncovered_calls) == (7, {})
        # a process may still have to count what it has just sent
        wait_until(lambda: [report.steps for report in engine.stats.ranks] == [7, 7])
        held = sum(report.parameter_bytes for report in stats.ranks)
        assert held == 2 * sum(tensor.nbytes for tensor in pipe.transformer.parameters()), "each rank has its share"
    assert not warnings(caplog)
    assert all(torch.equal(now, then) for now, then in zip(pipe.transformer_2.parameters(), before, strict=True))
    assert same(pipe(3, 7), expected)


def test_each_has_trajectories_of_its_own() -> None:
    pipe, alone = TwoDenoisers(), TwoDenoisers()
    plan = toy_plan(pipe.transformer)
    with parallelize(pipe, plan, transport="emulation") as engine:
        both = pipe(10, 20)
        assert (engine.stats.exact_steps, engine.stats.steps) == (2 * plan.warmup, 20)
    with parallelize(alone, {"transformer_2": plan}, transport="emulation"):
        assert same(alone(10, 20)[10:], both[10:])
    with parallelize(alone, {"transformer": plan}, transport="emulation"):
        assert same(alone(10, 20)[:10], both[:10])


def test_plans_of_their_own_may_split_them_in_other_ways() -> None:
    pipe = TwoDenoisers()
    expected = pipe(3, 7)
    plans = {"transformer": toy_plan(pipe.transformer, 2), "transformer_2": toy_plan(pipe.transformer_2, 1, branches=2)}
    with parallelize(pipe, plans, transport="emulation", exact=True) as engine:
        for made, wanted in zip(pipe(3, 7), expected, strict=True):
            torch.testing.assert_close(made[0], wanted[0])  # rows that are computed apart round differently
        assert engine.stats.steps == 7
    plans["transformer_2"] = toy_plan(pipe.transformer_2, 3)
    with pytest.raises(PlanMismatch, match="the plan needs 3 devices"), parallelize(pipe, plans, transport="emulation"):
        pass


def test_calls_of_a_denoiser_that_no_plan_covers_are_told(caplog: Any) -> None:
    pipe = TwoDenoisers()
    plans = {"transformer": toy_plan(pipe.transformer)}
    with parallelize(pipe, plans, transport="emulation") as engine:
        pipe(4, 4)
        assert not warnings(caplog)
        pipe(3, 7)
        pipe(3, 7)
        stats = engine.stats
        assert (stats.steps, stats.uncovered_calls) == (10, {"transformer_2": 8})
    assert len(warnings(caplog)) == 1
    assert "a second denoiser, which the plan does not cover: transformer_2 (" in caplog.text
    pipe(3, 7)
    assert not pipe.transformer_2._forward_hooks


def test_a_second_one_that_the_plan_does_not_fit_is_refused_by_name() -> None:
    pipe = TwoDenoisers()
    plan = toy_plan(pipe.transformer)
    pipe.transformer_2.down[0] = nn.Identity()
    with pytest.raises(PlanMismatch, match=r"transformer_2: .*plan of its own"), parallelize(pipe, plan):
        pass


def test_a_failed_start_says_why_and_gives_both_back(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = TwoDenoisers()
    expected = pipe(3, 7)

    def fail(*_args: Any) -> None:
        raise EngineError("no rank can load this")

    monkeypatch.setattr(Distribution, "give", fail)
    plan = toy_plan(pipe.transformer)
    with pytest.raises(EngineError, match="no rank can load this"), parallelize(pipe, plan, transport="emulation"):
        pass
    assert same(pipe(3, 7), expected)


def test_what_is_named_must_be_there() -> None:
    pipe = TwoDenoisers()
    plan = toy_plan(pipe.transformer)
    for plans, expected in (({}, "empty mapping"), ({"unet": plan}, "for unet, and this TwoDenoisers has no such")):
        with pytest.raises(InputError, match=expected), parallelize(pipe, plans):
            pass


def test_only_what_is_of_the_denoisers_class_is_a_second_one() -> None:
    pipe = TwoDenoisers()
    assert second_denoisers(pipe, pipe.transformer) == {"transformer_2": pipe.transformer_2}
    assert not second_denoisers(object(), pipe.transformer)


def test_a_file_with_a_plan_for_each_runs_both(tmp_path: Path) -> None:
    pipe = TwoDenoisers()
    expected = pipe(3, 7)
    plans = PipelinePlans.of({"transformer": toy_plan(pipe.transformer), "transformer_2": toy_plan(pipe.transformer)})
    plans.save(tmp_path / "both.plan.json")
    for given in (plans, tmp_path / "both.plan.json"):
        with parallelize(pipe, given, transport="emulation", exact=True) as engine:
            assert same(pipe(3, 7), expected)
            assert (engine.stats.steps, engine.stats.uncovered_calls) == (7, {})


def test_a_plan_finds_its_denoiser_by_its_class_whatever_the_pipeline_calls_it() -> None:
    pipe = SimpleNamespace(prior=toy(), vae=nn.Identity())
    inputs = Trajectory(2).inputs(0)
    with torch.no_grad():
        expected = pipe.prior(**inputs)
    with (
        parallelize(pipe, toy_plan(pipe.prior), transport="emulation", exact=True) as engine,
        torch.no_grad(),
    ):
        assert torch.equal(pipe.prior(**inputs)[0], expected[0])
        assert engine.stats.steps == 1
    del pipe.prior
    with pytest.raises(InputError, match="has neither"), parallelize(pipe, toy_plan(toy())):
        pass


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`callback_steps` is deprecated:FutureWarning")  # diffusers' own call
def test_a_folder_with_a_prior_and_a_decoder_gives_a_file_that_runs_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = PIPELINES["KandinskyV22CombinedPipeline"]
    folder, file = tiny.save(tmp_path), str(tmp_path / "both.plan.json")
    size = ["--height", "64", "--width", "64"]
    arguments = ["--model", str(folder), "--devices", "2", "--branches", "1", "--dtype", "float32", *size]
    assert partitioner.cli.main([*arguments, "--force", "--output", file, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["plan"], list(document["denoisers"])) == (file, ["unet", "prior_prior"])
    assert document["denoisers"]["prior_prior"]["class_name"] == "PriorTransformer"
    assert partitioner.cli.main(["inspect", file]) == 0
    assert "prior_prior\n-----------\nKandinskyV22CombinedPipeline (PriorTransformer)" in capsys.readouterr().out
    pipe = tiny.load(folder)
    wanted = tiny.run(pipe)
    with parallelize(pipe, file, transport="emulation", exact=True) as engine:
        assert largest_difference(tiny.run(pipe), wanted) < 1e-4
        assert engine.stats.steps == 4 + 6  # the prior's and the decoder's
    picture = str(tmp_path / "a.png")
    command = [file, "--pipeline", str(folder), "--prompt", "a red cat", "--steps", "2", *size, "--output", picture]
    assert runtime.cli.main([*command, "--transport", "emulation", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2 + 25  # the prior's own default
