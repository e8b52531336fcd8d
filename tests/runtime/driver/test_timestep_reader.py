"""Timesteps as numbers: by their place in the scheduler's list, by its step_index, or read."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from runtime.driver import timestep_reader
from runtime.driver.timestep_reader import TimestepReader

TIMESTEPS = [900.0, 600.0, 300.0, 0.0]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was waited for, where all values are late."""
    found = []
    read = timestep_reader.timestep_number

    def counted(timestep: torch.Tensor) -> float:
        found.append(read(timestep))
        return found[-1]

    monkeypatch.setattr(timestep_reader, "timestep_number", counted)
    monkeypatch.setattr(timestep_reader, "is_late", lambda tensor: True)
    return found


@pytest.mark.parametrize("start", [0, 2])
def test_views_of_the_schedulers_timesteps_are_not_read(reads: list[float], start: int) -> None:
    scheduler, reader = SimpleNamespace(timesteps=torch.tensor(TIMESTEPS)), TimestepReader()
    given = list(scheduler.timesteps[start:])
    assert [reader.number(t, scheduler) for t in given] == TIMESTEPS[start:]
    assert [reader.number(t.expand(2), scheduler) for t in given] == TIMESTEPS[start:]
    assert [reader.number(t[None], scheduler) for t in given] == TIMESTEPS[start:]
    assert reads == []


def test_timesteps_that_were_written_to_or_set_anew_are_the_new_ones(reads: list[float]) -> None:
    scheduler, reader = SimpleNamespace(timesteps=torch.tensor(TIMESTEPS)), TimestepReader()
    assert reader.number(scheduler.timesteps[1], scheduler) == 600.0
    scheduler.timesteps[1] = 650.0
    assert reader.number(scheduler.timesteps[1], scheduler) == 650.0
    scheduler.timesteps = torch.tensor([100, 50])
    assert reader.number(scheduler.timesteps[1], scheduler) == 50.0
    assert reads == []


def test_what_is_computed_of_timesteps_is_known_by_the_schedulers_step(reads: list[float]) -> None:
    scheduler, reader = SimpleNamespace(timesteps=torch.tensor(TIMESTEPS), step_index=None), TimestepReader()
    got = []
    for call, t in enumerate(scheduler.timesteps):
        got.append(reader.number((t / 1000).expand(2), scheduler))
        scheduler.step_index = call + 1
    assert got == pytest.approx([0.9, 0.6, 0.3, 0.0])
    assert len(reads) == 1, "the first"
    assert not reader.was_wrong


def test_a_step_that_does_not_name_the_timestep_is_noticed_and_counts_no_more(reads: list[float]) -> None:
    scheduler, reader = SimpleNamespace(timesteps=torch.tensor(TIMESTEPS), step_index=0), TimestepReader()
    passed = [t / 1000 for t in scheduler.timesteps]
    reader.number(passed[0], scheduler)
    scheduler.step_index = 1
    assert reader.number(passed[3], scheduler) == pytest.approx(0.6), "what step_index names"
    assert not reader.was_wrong
    assert reader.number(passed[3], scheduler) == 0.0
    assert reader.was_wrong
    assert len(reads) == 2


def test_all_else_is_read(reads: list[float]) -> None:
    reader = TimestepReader()
    assert reader.number(3, None) == 3.0
    assert reader.number(torch.tensor([7.0, 5.0]), None) == 7.0
    uneven = torch.tensor(TIMESTEPS)
    assert reader.number(uneven, SimpleNamespace(timesteps=uneven)) == 900.0, "no single one of them"
    assert reader.number(torch.tensor(600.0), SimpleNamespace(timesteps="none")) == 600.0
    assert reads == [7.0, 900.0, 600.0]


def test_of_several_numbers_the_largest_counts(reads: list[float]) -> None:
    """As where the first frame of a video is given: it has no noise at any step, or always the same little."""
    scheduler, reader = SimpleNamespace(timesteps=torch.tensor(TIMESTEPS), step_index=None), TimestepReader()
    got = []
    for call, t in enumerate(scheduler.timesteps):
        got.append(reader.number(torch.stack([torch.zeros(()), t, t])[None], scheduler))
        scheduler.step_index = call + 1
    assert got == TIMESTEPS
    assert len(reads) == 1, "the first"
    assert not reader.was_wrong
