"""RowValue: what one value of a graph has of a digit of a batch's rows; RowFault: where they do not stay apart.

AllParts    every part of the rows is in it, at a RowPlace
SameRows    the same for all parts; places along which its positions are all equal (as after expand) are noted
OnePart     of one part alone, as after x[0]; its key says what it is of that part, whichever it is
PartPieces  of some parts, position by position, as while a tensor is written to one row after the other
LostRows    parts are mixed, or treated otherwise, or it is not known
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from partitioner.graph.row_places import RowLabel, RowPlace

MIXED, UNLIKE, UNKNOWN = "mixes rows of the batch", "treats rows of the batch differently", "is not known to keep rows"


@dataclass(frozen=True)
class RowFault:
    """Where rows do not stay apart.

    Attributes:
        key: of the operator's node, "module.path/operator.k".
        what: MIXED, UNLIKE or UNKNOWN, in words that follow the operator's name.
    """

    key: str
    what: str

    @property
    def known(self) -> bool:
        """Whether the rows are known not to stay apart."""
        return self.what != UNKNOWN

    def __str__(self) -> str:
        module, _, operator = self.key.rpartition("/")
        apart = "" if self.known else " apart"
        return f"{operator.rpartition('.')[0] or operator} in {module or 'its forward'} {self.what}{apart}"


@dataclass(frozen=True, slots=True)
class AllParts:
    """Every part is in it, at a place."""

    key: int
    place: RowPlace

    @property
    def places(self) -> tuple[RowPlace, ...]:
        """Its place alone."""
        return (self.place,)


@dataclass(frozen=True, slots=True)
class SameRows:
    """The same for all parts; along some places all is equal."""

    key: int
    places: tuple[RowPlace, ...] = ()


@dataclass(frozen=True, slots=True)
class OnePart:
    """Of one part alone."""

    key: int
    number: int


@dataclass(frozen=True, slots=True)
class PartPieces:
    """Positions of a dimension of one part each, in another order than a RowPlace has; None: of all parts alike."""

    key: int
    dim: int
    labels: tuple[RowLabel | None, ...]
    origin: str  # key of the node that gave them this order


@dataclass(frozen=True, slots=True)
class LostRows:
    """The parts do not stay apart in it."""

    fault: RowFault


RowValue = AllParts | SameRows | OnePart | PartPieces | LostRows


def value_key(value: RowValue) -> Hashable:
    """What a value is told apart from others by."""
    return value.fault.key if isinstance(value, LostRows) else value.key
