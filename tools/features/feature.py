"""Feature: what a user does to a pipeline, in steps, each followed by a call whose result is compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tools.features.subject import Subject

Change = Callable[[Subject], Any]


def nothing(_subject: Subject) -> None:
    """Change nothing."""


@dataclass(frozen=True)
class Step:
    """One change, and the call after it.

    Attributes:
        row: the row of the matrix that the call belongs to.
        do: makes the change. Where it returns something, that is the pipeline to call instead of the subject's.
        undo: takes it back after the call.
        options: of the call, besides the defaults; a function makes them for a subject.
        seen: how often something of the user's was reached since the change, such as a hook that collects; it must be
            as often as in the unmodified pipeline. None: nothing is counted.
        shows: whether the unmodified pipeline's result must differ from that of a plain call; else nothing is proved.
    """

    row: str
    do: Change = nothing
    undo: Change = nothing
    options: Mapping[str, Any] | Callable[[Subject], Mapping[str, Any]] = field(default_factory=dict)
    shows: bool = True
    seen: Callable[[], int] | None = None

    def options_for(self, subject: Subject) -> dict[str, Any]:
        """The call's options."""
        return dict(self.options(subject) if callable(self.options) else self.options)


@dataclass(frozen=True)
class Feature:
    """Steps that are done one after the other to one pipeline, in one block.

    Attributes:
        steps: what is done. Where ``before`` is set, there is one, and its change is made before the block.
        before: whether the block is entered after the first change, instead of before it.
        ends_alike: whether a call after the block must give what it does without one; not where results depend on how
            often the denoiser was called.
        branches: of the plan: 1, cut in two components, must give the same bits. 2: the plan that ``parallelize``
            makes by itself for two devices, a half of the guidance batch each, which rounds differently.
    """

    steps: tuple[Step, ...]
    before: bool = False
    ends_alike: bool = True
    branches: int = 1


def before(row: str, do: Change, *, shows: bool = True, **options: Any) -> Feature:
    """A change before the block."""
    return Feature((Step(f"{row}, before", do, options=options, shows=shows),), before=True)


def inside(*steps: Step) -> Feature:
    """Changes between the calls of one block."""
    return Feature(steps)


def both(
    row: str,
    do: Change,
    undo: Change = nothing,
    *,
    shows: bool = True,
    seen: Callable[[], int] | None = None,
    ends_alike: bool = True,
    **options: Any,
) -> list[Feature]:
    """The same change before the block, and inside it, where it is undone again if there is an ``undo``."""
    steps = [Step(f"{row}, inside", do, undo, options, shows, seen)]
    if undo is not nothing:
        steps.append(Step(f"{row}, undone inside", options=options, shows=False))
    first = Step(f"{row}, before", do, options=options, shows=shows, seen=seen)
    return [Feature((first,), True, ends_alike), Feature(tuple(steps), False, ends_alike)]
