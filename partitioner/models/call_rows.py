"""CallRows: what a step's calls consist of; and the inputs of a call that has fewer rows than another.

Rows are counted along the first dimension of the noisy sample: images, times the parts of guidance where these are in
one batch. Which of the other inputs go with them follows from shapes: from two calls with different numbers of rows
where they were seen, else from one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

_Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True, slots=True)
class CallRows:
    """What one step of a pipeline's calls consists of.

    Attributes:
        rows: Of one call.
        counts: The numbers of rows that a branch may have, ``rows`` among them.
        calls: How often a step calls the denoiser.
        images: Images or videos of one call.
        whole: Why a call's rows are not divided, as the end of a sentence; None where nothing prevents it.
    """

    rows: int = 1
    counts: Collection[int] = (1,)
    calls: int = 1
    images: int = 1
    whole: str | None = None

    @property
    def unit(self) -> int:
        """What the rows of every branch are a multiple of.

        >>> CallRows(12, (4, 8, 12)).unit
        4
        """
        return math.gcd(*self.counts)


@dataclass(frozen=True, slots=True)
class RowPaths:
    """Which inputs go with a call's rows.

    Attributes:
        paths: Of those whose first dimension counts the rows, or is a multiple of them.
        unknown: Of those that cannot be told to go with them or not.
    """

    paths: frozenset[str] = field(default_factory=frozenset)
    unknown: tuple[str, ...] = ()

    @property
    def whole(self) -> str | None:
        """Why the rows cannot be divided, as the end of a sentence; None where they can."""
        if not self.unknown:
            return None
        return f"whether {', '.join(self.unknown[:3])} goes with the rows cannot be told from its shape"

    def shape(self, path: str, shape: Sequence[int], rows: int, of: int) -> tuple[int, ...]:
        """The shape of an input in a call of ``rows`` rows, which is ``shape`` in one of ``of``."""
        return (shape[0] * rows // of, *shape[1:]) if path in self.paths else tuple(shape)


def row_paths(shapes: _Shapes, latent: str, other: _Shapes | None = None) -> RowPaths:
    """Which inputs go with the rows.

    Args:
        shapes: Of a call's inputs, by path.
        latent: Path of the noisy sample.
        other: Of a call with another number of rows; None where none was seen.

    >>> shapes = {"x": (4, 8, 64), "prompt": (4, 77), "per_frame": (32, 77, 9), "ids": (1, 3), "what": (6,)}
    >>> found = row_paths(shapes, "x")
    >>> sorted(found.paths), found.unknown
    (['per_frame', 'prompt', 'x'], ('what',))
    """
    rows, were = shapes[latent][0], other[latent][0] if other is not None else None
    known = {
        path: path == latent or _goes_with_rows(shape, rows, None if other is None else other.get(path), were)
        for path, shape in shapes.items()
    }
    return RowPaths(
        frozenset(path for path, goes in known.items() if goes),
        tuple(path for path, goes in known.items() if goes is None),
    )


def _goes_with_rows(shape: Sequence[int], rows: int, was: Sequence[int] | None, rows_were: int | None) -> bool | None:
    """Whether an input's first dimension counts the rows, or is a multiple of them; None if that cannot be told."""
    if not shape:
        return False
    if was and rows_were is not None and rows_were != rows:
        if was[0] * rows == shape[0] * rows_were:
            return True
        return False if was[0] == shape[0] else None
    if shape[0] in (1, rows):
        return shape[0] == rows
    return True if len(shape) > 2 and shape[0] % rows == 0 else None
