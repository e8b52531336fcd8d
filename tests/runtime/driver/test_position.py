"""Position: what can come next, with a scheduler's sequence and without one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from runtime.driver.position import Position
from runtime.driver.timesteps import Timesteps


def test_a_sequence_is_followed_wherever_it_goes() -> None:
    """Also if timesteps repeat, as of samplers of two calls, or rise; in the form in which the pipeline passes them."""
    for form in (lambda t: t, lambda t: t / 1000, lambda t: 1 - t / 1000):
        values = [900.0, 600.0, 600.0, 700.0, 300.0]
        position = Position(form(900.0), SimpleNamespace(timesteps=torch.tensor(values)))
        for value in values[1:]:
            assert not position.is_last
            assert position.is_next(form(value))
            position.move(form(value))
        assert position.is_last
        assert not position.follows(form(300.0))


def test_calls_of_a_sequence_may_be_left_out() -> None:
    position = Position(900.0, SimpleNamespace(timesteps=torch.tensor([900, 600, 300, 0])))
    assert position.follows(300.0)
    assert not position.is_next(300.0)
    position.move(300.0)
    assert position.is_next(0.0)
    assert not position.follows(600.0)


def test_a_pace_is_kept_from_one_move_to_the_next() -> None:
    values = [float(value) for value in range(900, 0, -100)]
    position = Position(900.0, SimpleNamespace(timesteps=torch.tensor(values)))
    assert position.keeps_pace(800.0), "before any move it is one"
    assert not position.keeps_pace(700.0)
    position.move(700.0)
    assert position.keeps_pace(500.0)
    assert not position.keeps_pace(600.0)
    position.move(600.0)
    assert position.keeps_pace(500.0)
    assert Position(900.0, None).keeps_pace(100.0)


def test_without_a_sequence_the_direction_stays() -> None:
    for way in (-1, 1):
        for scheduler in (None, SimpleNamespace(timesteps=torch.tensor([7.0, 5.0]))):
            position = Position(500.0, scheduler)
            assert not position.is_known
            position.move(500.0 + way)
            assert position.follows(500.0 + 2 * way)
            assert position.follows(500.0 + way)
            assert not position.is_next(500.0 + way)
            assert not position.follows(500.0)
            assert not position.is_last


def test_a_timestep_is_looked_for_once_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    expects = Timesteps.expects
    monkeypatch.setattr(
        Timesteps, "expects", lambda own, call, timestep: asked.append(call) or expects(own, call, timestep)
    )
    position = Position(900.0, SimpleNamespace(timesteps=torch.tensor([900, 600, 300, 300, 0])))
    for place, timestep in enumerate((600.0, 300.0, 300.0, 0.0), 1):
        assert position.follows(timestep)
        assert position.is_next(timestep)
        position.move(timestep)
        assert asked == [place]
        asked.clear()
