"""What messages take is what is planned: by hand, and by the slots that ranks of small pipelines make."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import partitioner
from partitioner.planning.message_memory import SLOTS, component_memory
from partitioner.search.evaluate import CutTensor
from runtime.engine import Engine
from runtime.options import EngineOptions
from tests.support.plans import plan_simply
from tests.support.small_denoisers import SMALL, sample, scheduler_of


def test_readers_keep_messages_and_senders_have_slots() -> None:
    """Of three components in a row, of which the last also reads what the first makes; values of 10 bytes."""
    boundaries = (CutTensor("a", 0, (1, 2), 10), CutTensor("b", 1, (2,), 10))
    received, sent = (0, 10, 20), (20, 10, 0)
    for mode, kept in (("lookahead", (0, 3, 4 + 3)), ("async", (0, 5, 5 + 5))):
        components = [SimpleNamespace(memory_bytes=1000 + 3 * each, receive_bytes=each) for each in received]
        evaluation: Any = SimpleNamespace(mode=mode, boundaries=boundaries, components=components)
        for calls in (1, 2):
            for k, memory in enumerate(component_memory(evaluation, calls)):
                assert memory.slot_bytes == calls * SLOTS * sent[k]
                assert memory.message_bytes == memory.slot_bytes + calls * kept[k] * 10
                assert memory.memory_bytes == 1000 + memory.message_bytes


@pytest.mark.processes
@pytest.mark.parametrize(
    ("name", "mode", "components", "options"),
    [
        ("unet", "lookahead", 3, {"quality": "off"}),
        ("transformer", "async", 2, {"predictor": "linear"}),
    ],
)
def test_ranks_make_the_slots_that_are_planned(name: str, mode: Any, components: int, options: dict[str, Any]) -> None:
    """Of one machine's memory: what readers keep lies in its sender's slots."""
    denoiser, inputs, roles = SMALL[name]()
    graph = partitioner.trace(denoiser, inputs, roles)
    plan = plan_simply(graph, components, branches=1, mode=mode, warmup=2).plan
    assert (plan.components, plan.mode) == (components, mode)
    scheduler = scheduler_of(10)
    with Engine(denoiser, plan, EngineOptions(**options), scheduler=lambda: scheduler) as engine:
        sample(engine, inputs, scheduler)
        made = sum(report.slot_bytes for report in engine.stats.ranks)
        assert mode in engine.stats.mode
    figures = plan.predicted.components
    kept = sum(each.message_bytes - each.slot_bytes for each in figures)
    once = sum(boundary.size_bytes * len(boundary.readers) for boundary in plan.boundaries)
    inputs_bytes = sum(each.slot_bytes for each in figures) - SLOTS * once
    # how many are in use at once depends on who is ahead; slots begin at multiples of 64 bytes
    assert once <= made <= kept + inputs_bytes + 64 * 50
