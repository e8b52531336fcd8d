"""Verdicts: a changed pipeline differs, a raw error is a crash, a sentence of ours a refusal, if all is whole then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from runtime.errors import EngineClosed, InputError
from tools.features import cell as cells
from tools.features.cell import Cell, difference_of, run_feature
from tools.features.feature import Feature, Step, before, both, inside
from tools.features.subject import NotApplicable, Subject


class FakeSubject:
    """A pipeline of one weight; a call gives the weight times its scale."""

    name = "Fake"

    def __init__(self) -> None:
        self.denoiser = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.denoiser.weight)
        self.pipe = SimpleNamespace(denoiser=self.denoiser, run=self.denoiser.forward)


@pytest.fixture(autouse=True)
def fake_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    def call(pipe: Any, *, steps: int, scale: float = 1.0) -> torch.Tensor:
        with torch.no_grad():
            return pipe.run(torch.full((1, 1), scale))

    monkeypatch.setattr(cells, "call", call)


@contextmanager
def honest(_subject: Any, _pipe: Any) -> Iterator[None]:
    yield


def frozen(subject: Any, pipe: Any) -> Any:
    """Runs what the weight was when the block was entered."""

    @contextmanager
    def block() -> Iterator[None]:
        weight = pipe.denoiser.weight.detach().clone()
        pipe.run = lambda x: x * weight
        yield
        pipe.run = pipe.denoiser.forward

    return block()


def raising(error: Exception, *, lose: bool = False, at_exit: bool = False) -> Any:
    @contextmanager
    def block(_subject: Any, pipe: Any) -> Iterator[None]:
        def fail(_x: torch.Tensor) -> torch.Tensor:
            raise error

        if not at_exit:
            pipe.run = fail
        yield
        pipe.run = pipe.denoiser.forward
        if lose:
            nn.init.zeros_(pipe.denoiser.weight)
        if at_exit:
            raise error

    return block


def double(subject: Any) -> None:
    with torch.no_grad():
        subject.denoiser.weight.mul_(2)


def halve(subject: Any) -> None:
    with torch.no_grad():
        subject.denoiser.weight.div_(2)


def run(feature: Feature, block: Any) -> dict[str, Cell]:
    return run_feature(feature, FakeSubject, block)  # type: ignore[arg-type]


def verdicts(feature: Feature, block: Any) -> list[str]:
    return [found.verdict for found in run(feature, block).values()]


INSIDE = inside(Step("double", double, halve))


def test_the_same_bits_are_equal_and_a_change_that_is_ignored_differs() -> None:
    assert verdicts(INSIDE, honest) == ["equal"]
    found = run(INSIDE, frozen)["double"]
    assert (found.verdict, found.difference) == ("differs", 1.0)


def test_before_the_block_a_change_is_made_first() -> None:
    assert [verdicts(feature, frozen) for feature in both("double", double, halve)] == [
        ["equal"],
        ["differs", "equal"],  # the second row is after it was undone
    ]


def test_an_error_of_ours_is_a_refusal_and_any_other_a_crash() -> None:
    refused = run(INSIDE, raising(InputError("not like this; do that")))
    # the plain call at the start of the block is refused already, and every step with it
    assert refused == {"double": Cell("refused", "not like this; do that")}
    assert verdicts(INSIDE, raising(KeyError("view"))) == ["crashed"]
    assert verdicts(INSIDE, raising(EngineClosed("closed"))) == ["crashed"]


def test_a_refusal_that_loses_weights_is_none() -> None:
    found = run(INSIDE, raising(InputError("no"), lose=True))["double"]
    assert found.verdict == "differs"
    assert "afterwards" in found.detail


def test_an_error_on_leaving_the_block_is_a_crash() -> None:
    found = run(INSIDE, raising(InputError("no"), at_exit=True))["double"]
    assert found.verdict == "crashed"
    assert "leaving the block" in found.detail


def test_a_change_that_shows_nothing_proves_nothing() -> None:
    assert verdicts(before("none", lambda _: None), honest) == ["idle"]
    assert verdicts(before("none", lambda _: None, shows=False), honest) == ["equal"]


def test_what_a_pipeline_lacks_is_not_applicable() -> None:
    def missing(_subject: Subject) -> None:
        raise NotApplicable("it has no such thing")

    def broken(_subject: Subject) -> None:
        raise TypeError("no")

    assert run(before("it", missing), honest)["it, before"] == Cell("n/a", "it has no such thing")
    assert (
        run(before("it", broken), honest)["it, before"].detail == "the pipeline itself raises, changing: TypeError: no"
    )


def test_a_hook_that_is_not_reached_differs() -> None:
    seen: list[int] = []

    def hook(subject: Any) -> None:
        seen.clear()
        subject.denoiser.register_forward_hook(lambda *_: seen.append(1))
        run = subject.pipe.run
        subject.pipe.run = subject.denoiser if run == subject.denoiser.forward else run

    step = Step("hook", hook, shows=False, seen=lambda: len(seen))
    assert verdicts(Feature((step,)), honest) == ["equal"]
    found = run(Feature((step,)), frozen)["hook"]
    assert (found.verdict, found.detail) == ("differs", "reached 0 times, in the unmodified pipeline 1 times")


def test_steps_go_on_after_one_that_is_refused() -> None:
    def refusing(subject: Any) -> None:
        if subject.pipe.run != subject.denoiser.forward:
            raise InputError("not inside")

    feature = inside(Step("refused", refusing, shows=False), Step("plain", shows=False))
    assert verdicts(feature, frozen) == ["refused", "equal"]


def test_difference_of_what_cannot_be_compared() -> None:
    one = torch.ones(2)
    assert difference_of(one, torch.ones(3)) == float("inf")
    assert difference_of(one * float("nan"), one) == float("inf")
    assert difference_of(one.double(), one) == float("inf")
