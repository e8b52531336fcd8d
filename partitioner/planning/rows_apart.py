"""RowsApart: which ways to share a call's rows leave its result as it is, by the graph of the whole call."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping

from partitioner.errors import UsageError
from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Role
from partitioner.graph.row_flow import RowFlow
from partitioner.graph.row_values import RowFault
from partitioner.planning.branching import Branching

_LOGGER = logging.getLogger("partitioner")


class RowsApart:
    """Checks branchings against the graphs of a denoiser's calls."""

    def __init__(self, graphs: Mapping[int, TracedGraph], rows: int) -> None:
        """Follow nothing yet.

        Args:
            graphs: of calls, by their rows; more may be added later.
            rows: of the whole call.
        """
        self._graphs = graphs
        self._rows = rows
        self._flow: RowFlow | None = None
        self.fault: RowFault | None = None

    def kept(self, branchings: Iterable[Branching]) -> list[Branching]:
        """Those that compute what the whole call does; ``fault`` is why others do not."""
        return [branching for branching in branchings if self._keeps(branching)]

    def refuse(self, asked: int) -> None:
        """UsageError if rows that do not stay apart are why there is no way to have as many branches as was asked."""
        if self.fault is not None:
            raise UsageError(
                f"--branches {asked}: {self.fault}, so that branches that each have some of the rows would not compute "
                "what the whole call does; use --branches auto"
            )

    def alike(self, branching: Branching) -> tuple[str, ...]:
        """Inputs whose rows must be equal in every call that is shared like that."""
        return () if len(branching.rows) == 1 else self._flow_of(branching).division(self._parts(branching)).alike

    def divides_into(self, part: int) -> bool:
        """Whether calls of ``part`` rows, which divide the whole's, are known to compute what the whole call does."""
        parts = Branching((part,) * (self._rows // part))
        return self._flow_of(parts).part_fault(self._graphs[part], self._parts(parts)) is None

    def _keeps(self, branching: Branching) -> bool:
        if len(branching.rows) == 1:
            return True
        flow, parts = self._flow_of(branching), self._parts(branching)
        faults = (flow.part_fault(self._graphs[count], parts) for count in dict.fromkeys(branching.rows))
        fault = next((fault for fault in faults if fault is not None), None)
        if fault is None:
            return True
        if not fault.known and len(branching.rows) == 2 and branching.is_even:
            _LOGGER.warning("%s: the halves of a call are taken to be computed apart all the same", fault)
            return True
        if self.fault is None:
            _LOGGER.info("%s: %d branches cannot have some of the rows each", fault, len(branching.rows))
            self.fault = fault
        return False

    def _parts(self, branching: Branching) -> int:
        """Into how many equal parts the rows are divided, of which each branch has one or several."""
        return self._rows // math.gcd(*branching.rows)

    def _flow_of(self, branching: Branching) -> RowFlow:
        if self._flow is None:
            whole, part = self._graphs[self._rows], self._graphs[branching.rows[0]]
            shapes = {item.name: item.meta.shape for item in part.inputs}
            divided = [
                item.name
                for item in whole.inputs
                if item.role is Role.LATENT or shapes.get(item.name, item.meta.shape) != item.meta.shape
            ]
            self._flow = RowFlow(whole, divided, self._rows)
        return self._flow
