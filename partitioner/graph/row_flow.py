"""RowFlow: whether a denoiser keeps the rows of a batch apart, found by following them through its graph.

Rows that are computed apart, on devices of their own, must not read each other, and each must be treated alike: then
the parts of a call, put together, are the whole. Most denoisers do so; attention across images or frames does not.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations

from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Role
from partitioner.graph.row_digit import DigitFlow
from partitioner.graph.row_parts import part_fault
from partitioner.graph.row_places import RowPlace, factors
from partitioner.graph.row_values import RowFault


@dataclass(frozen=True)
class RowDivision:
    """Whether the rows of a call can be divided into equal parts.

    Attributes:
        parts: into how many.
        fault: why they cannot; None where they can.
        alike: inputs whose rows must then all be equal, since the denoiser reads the first row for all.
    """

    parts: int
    fault: RowFault | None = None
    alike: tuple[str, ...] = ()


class RowFlow:
    """Follows the rows of a batch through a graph.

    Attributes:
        graph: of a whole call.

    >>> import torch
    >>> from partitioner import trace
    >>> class Shared(torch.nn.Module):
    ...     def forward(self, x):
    ...         return x + x.mean(0, keepdim=True)
    >>> flow = RowFlow(trace(Shared().eval(), {"x": torch.zeros(4, 8)}, {"x": "latent"}), ["x"], 4)
    >>> flow.parts, str(flow.fault(2))
    (1, 'mean.dim in its forward mixes rows of the batch')
    """

    def __init__(self, graph: TracedGraph, divided: Collection[str], rows: int) -> None:
        """Follow nothing yet.

        Args:
            graph: of a whole call.
            divided: names of the inputs whose first dimension counts the rows, or rows times something.
            rows: how many there are.
        """
        self.graph = graph
        self._divided = frozenset(divided)
        self._rows = rows
        self._divisions: dict[int, RowDivision] = {}
        self._followed: dict[tuple[int, int, frozenset[str]], DigitFlow] = {}
        self._orders: dict[tuple[int, frozenset[str]], tuple[int, ...]] = {}  # of digits by which parts stay apart

    def division(self, parts: int) -> RowDivision:
        """Whether the rows can be divided into so many equal parts, first rows first.

        Raises:
            ValueError: the number of rows is no multiple of it.
        """
        if parts < 1 or self._rows % parts:
            raise ValueError(f"{self._rows} rows cannot be divided into {parts} equal parts")
        if parts not in self._divisions:
            self._divisions[parts] = self._find(parts)
        return self._divisions[parts]

    def fault(self, parts: int) -> RowFault | None:
        """Why the rows cannot be divided into so many equal parts; None where they can."""
        return self.division(parts).fault

    @cached_property
    def parts(self) -> int:
        """The largest number of equal parts, first rows first, that stay apart."""
        return max(parts for parts in range(1, self._rows + 1) if self._rows % parts == 0 and not self.fault(parts))

    def _find(self, parts: int) -> RowDivision:
        fault = self._fault(parts, frozenset())
        if fault is None:
            return RowDivision(parts)
        conditions = {item.name for item in self.graph.inputs if item.role < Role.STEP}
        alike = self._divided & conditions
        if not alike or self._fault(parts, alike) is not None:
            return RowDivision(parts, fault)
        for name in sorted(alike):
            if self._fault(parts, alike - {name}) is None:
                alike -= {name}
        return RowDivision(parts, None, tuple(sorted(alike)))

    def _fault(self, parts: int, alike: frozenset[str]) -> RowFault | None:
        first: RowFault | None = None
        for order in dict.fromkeys(permutations(factors(parts))):
            flows = (self._digit(outer, size, alike) for outer, size in _digits(order))
            fault = next((flow.fault for flow in flows if flow.fault is not None), None)
            if fault is None:
                self._orders[parts, alike] = order
                return None
            first = first or fault
        return first

    def _digit(self, outer: int, size: int, alike: frozenset[str]) -> DigitFlow:
        digit = outer, size, alike
        if digit not in self._followed:
            equal = dict.fromkeys(alike, RowPlace(0, 1, self._rows))
            rows = dict.fromkeys(self._divided - alike, RowPlace(0, outer, size))
            self._followed[digit] = DigitFlow(self.graph, rows, equal, RowPlace(0, outer, size))
        return self._followed[digit]

    def part_fault(self, part: TracedGraph, parts: int) -> RowFault | None:
        """Why a call of some rows does not compute what the whole call does of them; None where it does.

        A denoiser can keep two halves apart and take the rows of one for two halves again: it was told how many there
        are.

        Args:
            part: the graph of a call of one of so many equal parts, or of several.
            parts: into how many the rows are divided.
        """
        division = self.division(parts)
        if division.fault is not None:
            return division.fault
        alike = frozenset(division.alike)
        flows = [self._digit(*digit, alike) for digit in _digits(self._orders[parts, alike])]
        fault = part_fault(self.graph, part, flows, self._rows)
        return fault or (None if len(part.nodes) == len(self.graph.nodes) else self._other_order(part))

    def _other_order(self, part: TracedGraph) -> RowFault | None:
        """Where a part falls into parts that the whole does not fall into, or the other way round; None if nowhere."""
        shapes = {item.name: (item.meta.shape, self.graph.input_by_name[item.name].meta.shape) for item in part.inputs}
        rows = next(own[0] * self._rows // all_[0] for name, (own, all_) in shapes.items() if name in self._divided)
        flow = RowFlow(part, self._divided, rows)
        for parts in range(2, rows + 1):
            if rows % parts == 0:
                its, own = flow.fault(parts), self.fault(parts * self._rows // rows)
                if (its is None) != (own is None):
                    return its or own
        return None


def _digits(order: Sequence[int]) -> Iterator[tuple[int, int]]:
    """How many blocks of rows each digit is within, and its size."""
    outer = 1
    for size in order:
        yield outer, size
        outer *= size


def divide(whole: TracedGraph, parts: Sequence[TracedGraph]) -> RowDivision:
    """Whether calls of some rows each compute together what a call of all rows does.

    Args:
        whole: the graph of the whole call.
        parts: the graph of the call of each part, first rows first.
    """
    latent = next(item.name for item in whole.inputs if item.role is Role.LATENT)
    rows = whole.input_by_name[latent].meta.shape[0]
    shapes = {item.name: item.meta.shape for item in parts[0].inputs}
    divided = [item.name for item in whole.inputs if shapes[item.name] != item.meta.shape]
    count = rows // math.gcd(*(part.input_by_name[latent].meta.shape[0] for part in parts))
    flow = RowFlow(whole, divided, rows)
    different = {part.input_by_name[latent].meta.shape: part for part in parts}
    faults = (flow.part_fault(part, count) for part in different.values())
    return replace(flow.division(count), fault=next((fault for fault in faults if fault is not None), None))
