"""Branching: how the work of a step is shared by branches, which compute apart and exactly.

A step makes a call for each of its streams (guidance in two calls has two), and each call has rows: images, times the
parts of guidance where these are in one batch. Streams can have branches of their own, and branches can share a call's
rows. Four devices and two images with guidance in two calls give, for example:

    streams  rows of each branch  branches  calls of each branch in a step
       1            2                1        2
       1            1, 1             2        2
       2            2                2        1
       2            1, 1             4        1
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from partitioner.errors import UsageError
from partitioner.fleet import Fleet, grouped
from partitioner.models.call_rows import CallRows


@dataclass(frozen=True, slots=True)
class Branching:
    """One way to share a step.

    Attributes:
        rows: Of each branch of one stream.
        streams: So many of a step's calls have branches of their own.
        calls_per_step: How often the pipeline calls the denoiser at one timestep.
    """

    rows: tuple[int, ...]
    streams: int = 1
    calls_per_step: int = 1

    @property
    def branches(self) -> int:
        """How many branches it has."""
        return self.streams * len(self.rows)

    @property
    def is_even(self) -> bool:
        """Whether all branches have as many rows."""
        return len(set(self.rows)) == 1

    @property
    def calls(self) -> int:
        """How many calls the busiest branch computes in a step."""
        return self.calls_of(0)

    def calls_of(self, branch: int) -> int:
        """How many calls a branch computes in a step: streams take turns with the groups of branches.

        >>> [Branching((1,), streams=2, calls_per_step=3).calls_of(branch) for branch in range(2)]
        [2, 1]
        """
        group = branch // len(self.rows)
        return len(range(group, self.calls_per_step, self.streams))


def even_branchings(step: CallRows, devices: int, asked: int | None = None) -> list[Branching]:
    """Every way in which all branches have as many rows, fewest branches first.

    This is where the divisions of a call's rows are listed.

    Args:
        step: What is shared.
        devices: How many there are; each branch needs one at least.
        asked: Only ways with so many branches.

    >>> [(b.streams, b.rows) for b in even_branchings(CallRows(2, range(1, 3), calls=2), 4)]
    [(1, (2,)), (1, (1, 1)), (2, (2,)), (2, (1, 1))]
    """
    found = [
        Branching((step.rows // parts,) * parts, streams, step.calls)
        for streams in _stream_counts(step.calls)
        for parts in range(1, min(step.rows, devices // streams) + 1)
        if step.rows % parts == 0 and step.rows // parts in step.counts
    ]
    wanted = [branching for branching in found if asked in (None, branching.branches)]
    return sorted(wanted, key=lambda branching: (branching.branches, branching.streams))


def uneven_branchings(step: CallRows, fleet: Fleet, asked: int | None = None) -> Iterator[Branching]:
    """The ways in which branches have rows in proportion to the speed of their device; each branch is one component.

    Args:
        step: What is shared.
        fleet: The devices, with their speeds.
        asked: Only ways with so many branches.

    >>> from partitioner.fleet import Device
    >>> fast, slow = Device("fast", 1e12, 100.0, 0.0, 5.0), Device("slow", 1e12, 100.0, 0.0, 3.0)
    >>> [branching.rows for branching in uneven_branchings(CallRows(8, range(1, 9)), (fast, slow))]
    [(5, 3)]
    """
    for streams in _stream_counts(step.calls):
        if asked is not None and asked % streams:
            continue
        most = min(step.rows // step.unit, len(fleet) // streams)
        parts = most if asked is None else asked // streams
        if not 2 <= parts <= most:
            continue
        devices, _ = grouped(fleet, streams)
        fastest = sorted(devices.speeds, reverse=True)[:parts]
        shares = _shares(step.rows // step.unit, fastest, 0 if asked is None else 1)
        rows = tuple(step.unit * share for share in shares if share)
        if len(set(rows)) > 1 and set(rows) <= set(step.counts):
            yield Branching(rows, streams, step.calls)


def _shares(units: int, speeds: Sequence[float], least: int) -> list[int]:
    """Of so many units, those of each device: one after the other goes to the device that is done with it first.

    least: of each device. Speeds decrease, and so do the shares.
    """
    shares = [least] * len(speeds)
    for _ in range(units - sum(shares)):
        soonest = min(range(len(speeds)), key=lambda d: ((shares[d] + 1) / speeds[d], d))
        shares[soonest] += 1
    return shares


def _stream_counts(calls: int) -> list[int]:
    """For how many streams branches of their own are of use: more of them must leave a branch fewer calls.

    >>> _stream_counts(4)  # three groups would still make two calls each
    [1, 2, 4]
    """
    each = [math.ceil(calls / streams) for streams in range(1, calls + 1)]
    return [number + 1 for number, count in enumerate(each) if number == 0 or count < each[number - 1]]


def check_asked(name: str, step: CallRows, devices: int, asked: int | None) -> None:
    """UsageError if a step cannot be shared by so many branches.

    Args:
        name: Of the denoiser.
        step: What is to be shared.
        devices: How many there are.
        asked: The number of branches that a user wants; None for any.
    """
    if asked is None or asked == 1:
        return
    units = range(1, step.rows // step.unit + 1)
    any_share = all(step.unit * units_of in step.counts for units_of in units)
    parts = [n for n in units if any_share or (step.rows % n == 0 and step.rows // n in step.counts)]
    possible = sorted({streams * part for streams in _stream_counts(step.calls) for part in parts})
    if asked not in possible:
        calls = "one call" if step.calls == 1 else f"{step.calls} calls"
        rows = "one row" if step.rows == 1 else f"{step.rows} rows"
        has = f"a step of {name} makes {calls} of {rows}"
        why = f"; {step.whole}" if step.whole is not None and step.rows > 1 else ""
        if possible == [1]:
            raise UsageError(f"{name} has one branch: {has}, which cannot be divided{why}; use --branches 1")
        raise UsageError(f"--branches {asked}: {has}{why}; use --branches auto or {_listed(possible)}")
    if asked > devices:
        raise UsageError(
            f"{asked} branches need {asked} devices at least, and there are {devices}; use --branches auto"
        )


def _listed(numbers: Sequence[int]) -> str:
    """Numbers in words: "2", "2 to 8", "2, 4".

    >>> _listed([2, 3, 4]), _listed([2, 4])
    ('2 to 4', '2, 4')
    """
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))
