"""run_feature: a feature done to two equal pipelines, one of them unmodified and one run by an engine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from partitioner.errors import PartitionerError, first_line
from runtime.errors import InputError, PlanMismatch
from tools.features.digest import digest
from tools.features.feature import Feature, Step
from tools.features.subject import NotApplicable, Subject
from tools.small_pipelines import call

Verdict = Literal["equal", "refused", "differs", "crashed", "idle", "n/a"]
Block = Callable[[Subject, Any], AbstractContextManager[Any]]  # of a subject, and the pipeline that is called
WRONG: tuple[Verdict, ...] = ("crashed", "differs", "idle")  # what the command fails with; the worst first
REFUSALS = (InputError, PlanMismatch, PartitionerError)
STEPS = 3


@dataclass(frozen=True)
class Cell:
    """What came of one row on one pipeline.

    Attributes:
        verdict: "equal": the call gave the unmodified pipeline's very bits (of halves of a batch: to 1e-4 of the
            largest value). "refused": one of this project's errors was raised, and the pipeline was usable and its
            weights whole after the block. "differs"; "crashed": any other error. "idle": the unmodified pipeline
            itself did not show the change, so that nothing is proved. "n/a": the pipeline has no such feature.
        detail: a sentence: what differs, what was refused, what is missing.
        difference: the largest between the two pipelines' results; None where none were compared.
    """

    verdict: Verdict
    detail: str = ""
    difference: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Its fields."""
        return asdict(self)


@dataclass(frozen=True)
class Raised:
    """What came instead of a result. where: what was being done: "changing", "entering the block" or "calling"."""

    error: Exception
    where: str

    def __str__(self) -> str:
        return f"{self.where}: {type(self.error).__name__}: {first_line(self.error)}"


Output = torch.Tensor | Raised


@dataclass
class Played:
    """What the steps of a feature gave on one pipeline.

    Attributes:
        outputs: of each step.
        seen: of each step, how often something of the user's was reached; 0 where nothing is counted.
        after: a plain call after the block; leaving the block or that call may have raised.
        weights: a digest of the denoiser's state after the block.
    """

    outputs: list[Output] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)
    after: Output | None = None
    weights: str = ""


def run_feature(feature: Feature, make: Callable[[], Subject], block: Block) -> dict[str, Cell]:
    """Do a feature to two equal pipelines, one of them in a block, and compare the results, by row.

    Args:
        feature: what to do.
        make: gives a fresh subject, always the same.
        block: what runs a pipeline by an engine while it is entered.
    """
    plain = _call(make(), Step(""), None)
    reference = play(feature, make(), lambda *_: nullcontext())
    if all(isinstance(output, Raised) for output in reference.outputs):
        tried = reference  # there is nothing to try
    else:
        tried = play(feature, make(), block)
    end = _end(reference, tried, feature)
    cells: dict[str, Cell] = {}
    for number, step in enumerate(feature.steps):
        cell = _judge(step, reference.outputs[number], tried.outputs[number], plain, feature.branches)
        times = reference.seen[number], tried.seen[number]
        if cell.verdict == "equal" and times[0] != times[1]:
            cell = Cell("differs", f"reached {times[1]} times, in the unmodified pipeline {times[0]} times")
        if cell.verdict in ("equal", "refused") and end is not None:
            cell = Cell(end.verdict, f"{cell.detail}; afterwards: {end.detail}".lstrip("; "), end.difference)
        cells[step.row] = cell
    return cells


def play(feature: Feature, subject: Subject, block: Block) -> Played:
    """Do a feature's steps to one pipeline, each to its end, whatever they raise.

    Args:
        feature: what to do.
        subject: what it is done to.
        block: entered before the first call, and left after the last.
    """
    played = Played()
    stack = ExitStack()
    for number, step in enumerate(feature.steps):
        where, other = "entering the block", None
        try:
            if number == 0 and not feature.before:
                stack.enter_context(block(subject, subject.pipe))
                _call(subject, Step(""), None)
            where = "changing"
            torch.manual_seed(0)
            other = step.do(subject)
            where = "entering the block"
            if number == 0 and feature.before:
                stack.enter_context(block(subject, other or subject.pipe))
            where = "calling"
            played.outputs.append(_call(subject, step, other))
        except Exception as error:
            played.outputs.append(Raised(error, where))
        if where == "calling":  # the change was made, so that it is taken back, also where the call was refused
            try:
                step.undo(subject)
            except Exception as error:
                played.outputs[-1] = Raised(error, "undoing")
        played.seen.append(0 if step.seen is None else step.seen())
    where = "leaving the block"
    try:
        stack.close()
        where = "a call after the block"
        played.after = _call(subject, feature.steps[-1], other)
        where = "reading the weights after the block"
        played.weights = digest(subject.denoiser)
    except Exception as error:
        played.after = Raised(error, where)
    return played


def _call(subject: Subject, step: Step, other: Any) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.as_tensor(call(other or subject.pipe, **{"steps": STEPS, **step.options_for(subject)}))


def _judge(step: Step, expected: Output, got: Output, plain: torch.Tensor, branches: int) -> Cell:
    """The verdict of one step."""
    if isinstance(expected, Raised):
        missing = isinstance(expected.error, NotApplicable)
        return Cell("n/a", str(expected.error) if missing else f"the pipeline itself raises, {expected}")
    if isinstance(got, Raised):
        refused = isinstance(got.error, REFUSALS)
        return Cell("refused" if refused else "crashed", str(got.error) if refused else str(got))
    if step.shows and torch.equal(expected, plain):
        return Cell("idle", "the unmodified pipeline gives the same without it")
    difference = difference_of(got, expected)
    return Cell("equal" if difference <= _allowed(expected, branches) else "differs", "", difference)


def _end(reference: Played, tried: Played, feature: Feature) -> Cell | None:
    """What is wrong after the block; None where nothing is."""
    if isinstance(tried.after, Raised):
        return None if isinstance(reference.after, Raised) else Cell("crashed", str(tried.after))
    if not isinstance(tried.after, torch.Tensor) or not isinstance(reference.after, torch.Tensor):
        return None
    difference = difference_of(tried.after, reference.after)
    if difference and feature.ends_alike:
        return Cell("differs", "a call after the block gives another result", difference)
    return None if tried.weights == reference.weights else Cell("differs", "the weights are others after the block")


def _allowed(expected: torch.Tensor, branches: int) -> float:
    return 0.0 if branches == 1 else 1e-4 * expected.abs().max().item()


def difference_of(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference of two results; inf where they cannot be compared.

    >>> difference_of(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]))
    0.5
    """
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return float("inf")
    if torch.equal(got, expected):
        return 0.0
    difference = (got.double() - expected.double()).abs().max().item()
    return float("inf") if difference != difference else difference
