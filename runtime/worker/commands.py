"""Commands: what the driver tells a worker to do. A worker obeys them in the order in which they come."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from partitioner.graph.nodes import Parameter
from runtime.transport.mailbox import Expected
from runtime.worker.specs import ComponentSpec

DRIVER = 0  # the driver's rank


@dataclass(frozen=True)
class Setup:
    """What a worker is told once, when it is made: a rank has a worker for each denoiser.

    rank, component: its own. ranks_of: component -> rank, within its branch. device: as torch names it. predictor:
    name of the one for lagged reads. check_finite: look for NaN and Inf in all that it computes. record: note what it
    does and when. compile, cuda_graphs: see runtime.worker.component.Component. branch: its own. result_ranks: by
    branch, the rank that makes its results; the driver is that of branch 0, and the others send them to it.
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
    branch: int = 0
    result_ranks: tuple[int, ...] = (DRIVER,)


@dataclass(frozen=True)
class Build:
    """Lower the component of a new graph, to be run by evaluations that name the graph's number, ``table``.

    The number is of a table because messages find there what they are: the wires of the graph.
    """

    table: int
    spec: ComponentSpec


@dataclass(frozen=True)
class Load:
    """Get parameters.

    parameters: those that arrive as messages of ``table``, in this order. stored: those to be read from files, each
    with its file and the digest of what that has to hold. offsets: where each begins in memory, of ``parameters`` and
    then of ``stored`` (see runtime.transport.weight_files.at_offset).
    """

    table: int
    parameters: tuple[Parameter, ...]
    stored: tuple[tuple[Parameter, Path, str | None], ...]
    offsets: tuple[int, ...]

    @property
    def wires(self) -> tuple[Expected, ...]:
        """What the messages of ``table`` are."""
        return tuple(Expected(p.path, p.meta, (DRIVER,)) for p in self.parameters)


@dataclass(frozen=True)
class SendBack:
    """Send parameters to the driver, as messages of ``table`` in this order. rank: whose command it is."""

    table: int
    parameters: tuple[Parameter, ...]
    rank: int

    @property
    def wires(self) -> tuple[Expected, ...]:
        """What the messages of ``table`` are."""
        return tuple(Expected(p.path, p.meta, (self.rank,)) for p in self.parameters)


@dataclass(frozen=True)
class ForgetGraphs:
    """Forget graphs, and all parameters but some, which may have other paths from now on.

    tables: of the graphs. kept: former path -> path now, of the parameters that stay.
    """

    tables: tuple[int, ...]
    kept: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Join:
    """How what is received in a micro-batch becomes a message of the whole batch, for lagged evaluations to come.

    table, context: of the whole batch's graph and messages. part: which micro-batch this is, of ``parts``.
    """

    table: int
    context: int
    part: int
    parts: int


@dataclass(frozen=True)
class Evaluate:
    """Run one evaluation: the component, once, on one batch of rows at one step.

    table: which graph. context: number of the cache context. step: of the evaluation, counted from the engine's start.
    reads: by component, the step of the message to read from it; ``step`` itself in exact evaluations and in
    look-ahead, an earlier one where the component is lagged. arrivals: by component, the steps that it was newly told
    to run in this context, in order; the predictors observe the messages of all of them. observe: whether reads go
    through predictors. fresh: the prompt inputs that come with this evaluation; the others are as before. start: where
    this is the first evaluation of a trajectory in this context, the step of the trajectory's first call. ahead: in
    look-ahead, the first step that is not run exactly; messages of such steps may overtake exact ones. join: where this
    is a micro-batch whose messages will be read lagged, what to do with them.
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
class Forget:
    """Drop what is kept of a trajectory that has ended.

    contexts: its number and those of its micro-batches. before_step: messages of earlier steps will not be read.
    """

    contexts: tuple[int, ...]
    before_step: int


@dataclass(frozen=True)
class Stop:
    """End."""


WorkerCommand = Build | Load | SendBack | ForgetGraphs | Evaluate | Forget


@dataclass(frozen=True)
class RankCommand:
    """What one of a rank's workers is to do. denoiser: number of the denoiser whose worker it is."""

    denoiser: int
    command: WorkerCommand
