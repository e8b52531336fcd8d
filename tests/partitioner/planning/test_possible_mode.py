"""partitioner.planning.possible_mode: async mode where nothing can be foreseen, unless a mode is asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from partitioner.graph.nodes import Role
from partitioner.models.samplers import config_text
from partitioner.planning.expected_quality import QualityAdvisor
from partitioner.planning.options import PlanOptions
from partitioner.planning.possible_mode import in_possible_mode
from partitioner.planning.sampling_setup import SamplingSetup
from tests.support.quality_rows import profile_of


@pytest.mark.parametrize(
    ("scheduler", "role", "mode", "why"),
    [
        ("DDIMScheduler", Role.PROMPT, None, None),
        ("DDIMScheduler", Role.STEP, "async", "control are new at every step"),
        ("EulerAncestralDiscreteScheduler", Role.PROMPT, "async", "cannot be predicted: it adds noise of its own"),
        (None, Role.PROMPT, None, None),
    ],
)
def test_what_cannot_be_foreseen_is_planned_in_async_mode(
    scheduler: str | None, role: Role, mode: str | None, why: str | None
) -> None:
    graph: Any = SimpleNamespace(inputs=[SimpleNamespace(name="control", role=role)])
    advisor = QualityAdvisor(profile_of([]), SamplingSetup(20, scheduler))
    said: list[str] = []
    assert in_possible_mode(PlanOptions(), graph, advisor, said.append).mode == mode
    assert not said if why is None else why in said[0]
    asked = in_possible_mode(PlanOptions(mode="lookahead"), graph, advisor, said.append)
    assert (asked.mode, len(said)) == ("lookahead", 0 if why is None else 1)


def test_a_sampler_that_clips_is_planned_in_async_mode() -> None:
    graph: Any = SimpleNamespace(inputs=[])
    said: list[str] = []
    modes = []
    for clips in (False, True):
        setup = SamplingSetup(20, "DDIMScheduler", scheduler_config=config_text({"clip_sample": clips}))
        advisor = QualityAdvisor(profile_of([]), setup)
        modes.append(in_possible_mode(PlanOptions(), graph, advisor, said.append).mode)
    assert modes == [None, "async"]
    assert len(said) == 1
    assert "it clips what is large" in said[0]
