"""Commands: what the driver tells a worker to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from partitioner.graph.ir import Parameter
from runtime.transport.mailbox import Expected
from runtime.worker.specs import ComponentSpec

DRIVER = 0  # the driver's rank


@dataclass(frozen=True)
class Setup:
    """What a worker is told once.

    ranks_of: component -> rank, within its branch. result_ranks: the ranks whose results it takes (the driver's only).
    compile, cuda_graphs: see runtime.worker.component.Component.
    """

    rank: int
    component: int
    ranks_of: tuple[int, ...]
    device: str
    predictor: str
    check_finite: bool = False
    record: bool = False
    compile: bool = False
    cuda_graphs: bool = False
    result_ranks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Build:
    """A new graph: number ``table``, to be run from now on where an evaluation names it."""

    table: int
    spec: ComponentSpec


@dataclass(frozen=True)
class Load:
    """Parameters to load. parameters: will arrive as messages of ``table``, in this order. stored: to be read
    from files, each with its file. offsets: of parameters, then of stored (see runtime.weights.at_offset)."""

    table: int
    parameters: tuple[Parameter, ...]
    stored: tuple[tuple[Parameter, Path], ...]
    offsets: tuple[int, ...]

    @property
    def wires(self) -> tuple[Expected, ...]:
        return tuple(Expected(p.path, p.meta, (DRIVER,)) for p in self.parameters)


@dataclass(frozen=True)
class Join:
    """This evaluation is of micro-batch ``part`` of ``parts``: keep what it receives, and when all parts are there put
    it in as the message of the whole batch, of ``table`` and ``context``."""

    table: int
    context: int
    part: int
    parts: int


@dataclass(frozen=True)
class Evaluate:
    """Run one evaluation.

    reads: per component, the step of the message to read from it; equal to ``step`` in exact evaluations and in
    look-ahead, earlier where it is lagged. arrivals: per component, steps that it was newly told to run in this
    context, in order; their messages are observed by the predictors. fresh: the prompt inputs that come with
    this evaluation; the others are as before. start: where this is the first evaluation of a trajectory in this
    context, the step of the trajectory's first call. ahead: in look-ahead the first step that is not run exactly;
    messages of such steps may overtake exact ones. join: of a micro-batch whose messages will be read lagged.
    """

    table: int
    context: int
    step: int
    reads: tuple[int, ...]
    arrivals: tuple[tuple[int, ...], ...]
    fresh: tuple[str, ...]
    start: int | None
    observe: bool
    ahead: int | None = None
    join: Join | None = None


@dataclass(frozen=True)
class Stop:
    """End orderly."""
