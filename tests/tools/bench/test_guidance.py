"""Small pipelines with guidance in two calls run on two ranks with the same bits, and a document says so. No time is
asserted."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch

from partitioner.planning.options import PlanOptions
from runtime import parallelize
from runtime.live_plans import plan_for
from tools.bench import guidance
from tools.bench.guidance_rounds import call_times, step_times
from tools.bench.guided_pipelines import GUIDED_PIPELINES, TINY

pytestmark = pytest.mark.usefixtures("trace_once")

STEPS = 4
KEYS = {
    "pipeline", "cache_contexts", "ranks", "streams", "steps", "rounds", "call_ms", "rest_share", "one_rank_step_ms",
    "two_ranks_step_ms", "step_ratio", "generation_ratio", "bit_equal", "largest_difference", "calls",
    "foreseen_calls", "wasted_calls",
}  # fmt: skip


class Sampler:
    def step(self, value: float) -> float:
        return value + 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wan", "chroma", "sdxl-modular", "hunyuan-video-1.5"])  # one of each kind
def test_two_calls_on_two_ranks_have_the_bits_of_one(name: str) -> None:
    guided = GUIDED_PIPELINES[name]
    pipe = guided.pipe(TINY)
    wanted = guided.run(pipe, TINY, STEPS)
    plan = plan_for(pipe, 2, {}, PlanOptions(branches=2, force=True), call=guided.arguments(TINY))
    with parallelize(pipe, plan, transport="emulation", exact=True) as engine:
        assert torch.equal(guided.run(pipe, TINY, STEPS), wanted)
        stats = engine.stats
    assert (plan.streams, plan.components) == (2, 1)
    assert (stats.steps, stats.foreseen_calls, stats.wasted_calls) == (2 * STEPS, STEPS - 1, 0)


@pytest.mark.processes
def test_one_document_tells_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--tiny", "--pipeline", "wan", "--steps", str(STEPS), "--rounds", "2"]
    assert guidance.main([*options, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["environment"]["torch"] == str(torch.__version__)
    rows: list[dict[str, Any]] = document["results"]
    assert [(row["pipeline"], row["cache_contexts"]) for row in rows] == [("wan", True), ("wan", False)]
    for row in rows:
        assert row.keys() >= KEYS
        assert (row["bit_equal"], row["largest_difference"]) == (True, 0.0)
        assert (row["calls"], row["foreseen_calls"], row["wasted_calls"]) == (2 * STEPS, STEPS - 1, 0)
        assert row["step_ratio"] == pytest.approx(row["two_ranks_step_ms"] / row["one_rank_step_ms"])
    lines = guidance.table(rows).splitlines()
    assert lines[0].split()[:2] == ["pipeline", "contexts"]
    assert "3 of 8" in lines[1]


def test_steps_are_those_of_one_sampler() -> None:
    own = Sampler.step
    sampler = Sampler()
    with step_times(sampler) as times:
        assert sampler.step(1.0) == 2.0
        copy.copy(sampler).step(1.0)
    sampler.step(1.0)
    assert len(times) == 1
    assert Sampler.step is own


def test_calls_are_watched_inside_the_block_only() -> None:
    module = torch.nn.Identity()
    with call_times(module) as times:
        module(1)
    module(1)
    assert len(times) == 1


def test_a_generation_of_one_step_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert guidance.main(["--steps", "1"]) == 2
    assert "expected a whole number from 2 on" in capsys.readouterr().err
