"""RowPlace: where in a tensor the rows of a batch lie, and where they go when it is reshaped, cut or put together.

A batch's rows are followed one *digit* at a time: 4 rows are 2 halves of 2, and the halves are a digit of size 2.
In a dimension of 4 rows x 5 tokens, rows outermost, they lie at ``RowPlace(dim, outer=1, size=2)``: 1 x 2 x 10.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

Extents = tuple[int, ...]
RowLabel = tuple[int, Hashable]  # of a position: whose part it is, and what it is in every part


class RowPlace(NamedTuple):
    """A digit of the positions in a dimension: outer x size x inner are the dimension's size.

    dim: the dimension. outer: how many blocks of all digits there are. size: how many values the digit has.
    """

    dim: int
    outer: int
    size: int

    def holds(self, other: RowPlace) -> bool:
        """Whether another digit is part of this one.

        >>> RowPlace(0, 1, 4).holds(RowPlace(0, 2, 2)), RowPlace(0, 1, 4).holds(RowPlace(0, 4, 2))
        (True, False)
        """
        if self.dim != other.dim or other.outer % self.outer:
            return False
        return self.size % (other.outer // self.outer * other.size) == 0


def reshaped(places: Sequence[RowPlace], shape: Extents, new: Extents) -> tuple[RowPlace, ...]:
    """Where digits are when a tensor is given another shape; one that is cut is in several pieces, or in none.

    >>> reshaped([RowPlace(0, 1, 2)], (4, 5, 3), (20, 3))
    (RowPlace(dim=0, outer=1, size=2),)
    >>> reshaped([RowPlace(0, 1, 6)], (6, 2), (3, 4))
    (RowPlace(dim=0, outer=1, size=3), RowPlace(dim=1, outer=1, size=2))
    """
    runs: list[tuple[int, int]] = []  # first position and size, in units of the flattened tensor's parts
    for before, size in sorted((math.prod(shape[: p.dim]) * p.outer, p.size) for p in places):
        if runs and runs[-1][0] * runs[-1][1] == before:
            runs[-1] = (runs[-1][0], runs[-1][1] * size)
        else:
            runs.append((before, size))
    found = []
    for begin, size in runs:
        start = 1
        for dim, length in enumerate(new):
            low, high = max(begin, start), min(begin * size, start * length)
            steps = (begin, low), (start, low), (low, high), (high, begin * size), (high, start * length)
            if low < high and all(large % small == 0 for small, large in steps):
                found.append(RowPlace(dim, low // start, high // low))
            start *= length
    return tuple(found)


def whole(shape: Extents) -> tuple[RowPlace, ...]:
    """All that a tensor of that shape has, as places."""
    return tuple(RowPlace(dim, 1, size) for dim, size in enumerate(shape) if size > 1)


def labels(place: RowPlace, length: int) -> list[RowLabel]:
    """The label of each position of a dimension: its digit, and where it is within that part.

    >>> labels(RowPlace(0, 1, 2), 4)
    [(0, (0, 0)), (0, (0, 1)), (1, (0, 0)), (1, (0, 1))]
    """
    inner = length // (place.outer * place.size)
    return [(i // inner % place.size, (i // (inner * place.size), i % inner)) for i in range(length)]


def regular(dim: int, size: int, found: Sequence[RowLabel]) -> RowPlace | None:
    """The digit that positions with these labels are, if all parts have the same at the same places; else None.

    >>> regular(0, 2, [(0, "a"), (0, "b"), (1, "a"), (1, "b")])
    RowPlace(dim=0, outer=1, size=2)
    >>> regular(0, 2, [(1, "a"), (0, "a")]) is regular(0, 2, [(0, "a"), (1, "b")]) is None
    True
    """
    numbers = [number for number, _ in found]
    inner = next((i for i, number in enumerate(numbers) if number != numbers[0]), len(numbers))
    if not found or len(found) % (inner * size):
        return None
    place = RowPlace(dim, len(found) // (inner * size), size)
    first: dict[Hashable, Hashable] = {}
    for (number, what), (wanted, where) in zip(found, labels(place, len(found)), strict=True):
        if number != wanted or first.setdefault(where, what) != what:
            return None
    return place


def taken(place: RowPlace, length: int, index: Sequence[int]) -> tuple[RowPlace | None, list[RowLabel]]:
    """Where a digit is when positions of its dimension are taken: also the labels of what was taken.

    >>> taken(RowPlace(0, 1, 2), 4, [0, 2])[0], taken(RowPlace(0, 1, 2), 4, [2, 0])[0]
    (RowPlace(dim=0, outer=1, size=2), None)
    """
    if list(index) == list(range(length)):
        return place, []
    every = labels(place, length)
    found = [every[i] for i in index]
    return regular(place.dim, place.size, found), found


def any_holds(places: Sequence[RowPlace], place: RowPlace) -> bool:
    """Whether a digit is part of one of some."""
    return any(each.holds(place) for each in places)


def equal_after(equal: Sequence[RowPlace], dim: int, length: int, index: Sequence[int]) -> Iterator[RowPlace]:
    """Places along which all is equal, after positions of a dimension were taken."""
    for place in equal:
        if place.dim != dim:
            yield place
        elif place.size == length:
            yield RowPlace(dim, 1, len(index))
        else:
            kept = taken(place, length, index)[0]
            if kept is not None:
                yield kept
    blocks = _equal_blocks(length, index)
    if blocks is not None and not any(place.dim == dim and place.size == length for place in equal):
        yield blocks._replace(dim=dim)


def _equal_blocks(length: int, index: Sequence[int]) -> RowPlace | None:
    """The digit of a dimension along which the same positions were taken again: by repeat or repeat_interleave."""
    if isinstance(index, range) or len(index) <= length or not length or len(index) % length:
        return None
    times = len(index) // length
    if list(index) == list(range(length)) * times:
        return RowPlace(0, 1, times)
    if list(index) == [i // times for i in range(len(index))]:
        return RowPlace(0, length, times)
    return None


def digits_within(places: Sequence[RowPlace], size: int) -> Iterator[RowPlace]:
    """The digits of a size along which all is equal."""
    for place in places:
        for outer in _divisors(place.size // size) if place.size % size == 0 else ():
            yield RowPlace(place.dim, place.outer * outer, size)


@lru_cache(maxsize=1024)
def _divisors(number: int) -> tuple[int, ...]:
    return tuple(d for d in range(1, number + 1) if number % d == 0)


def factors(number: int) -> Iterator[int]:
    """The prime factors of a number, smallest first.

    >>> list(factors(12))
    [2, 2, 3]
    """
    divisor = 2
    while number > 1:
        while number % divisor == 0:
            yield divisor
            number //= divisor
        divisor += 1
