"""Which rows are computed together, and which rank is told what."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.driver.traced_graphs import BuiltGraph
from runtime.worker.commands import Join


@dataclass(frozen=True)
class Batch:
    """Rows that are computed together: all of a call, or a micro-batch. context: its number in message keys.

    join: see runtime.worker.worker; of micro-batches whose messages will be read lagged.
    """

    built: BuiltGraph
    context: int
    join: Join | None = None
