"""Where the planner gets a denoiser's graphs from: a model's description, a module, or graphs that are traced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol

from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Role
from partitioner.models.call_rows import CallRows
from partitioner.planning.argument_rows import ArgumentRows
from partitioner.planning.options import Progress
from partitioner.process import beside
from partitioner.staleness.edge_errors import EdgeErrors
from profiles.collector import without_collector

if TYPE_CHECKING:
    from torch import nn

    from partitioner.models.spec import ModelSpec, SteppedModule


class GraphSource(Protocol):
    """Gives the graphs of one denoiser."""

    @property
    def name(self) -> str:
        """What plans call the denoiser."""

    @property
    def step(self) -> CallRows:
        """The calls of a step, and how many rows a branch may have."""

    @property
    def divides_unasked(self) -> bool:
        """Whether a call's rows are known to be computed apart, so that they are divided without being asked for."""

    @property
    def revision(self) -> str | None:
        """The commit of the model on the hub, where it has one."""

    @property
    def beside(self) -> tuple[SteppedModule, ...]:
        """What the pipeline calls at each step beside its denoisers."""

    def trace(self, rows: Iterable[int], progress: Progress) -> dict[int, TracedGraph]:
        """The graph of a call of so many rows, for each of some numbers of rows."""

    def edge_errors(self, whole: TracedGraph, progress: Progress) -> EdgeErrors | None:
        """Measured staleness of the edges of a whole call's graph, which are those of its parts; None: not measured."""


@dataclass(frozen=True, eq=False)
class FromGraphs:
    """Graphs that are traced already.

    Attributes:
        whole: Of a whole call.
        parts: Of calls of fewer rows, which branches can compute.
        calls: How often a step calls the denoiser.
        errors: Measured staleness of the whole graph's edges; None: not measured.
    """

    whole: TracedGraph
    parts: tuple[TracedGraph, ...] = ()
    calls: int = 1
    errors: EdgeErrors | None = None
    divides_unasked: bool = True
    revision: str | None = None
    beside: tuple[SteppedModule, ...] = ()

    @property
    def name(self) -> str:
        """The name that the graph was traced under."""
        return self.whole.model

    @cached_property
    def _graphs(self) -> dict[int, TracedGraph]:
        return {_rows_of(graph): graph for graph in (self.whole, *self.parts)}

    @property
    def step(self) -> CallRows:
        """The rows of these graphs."""
        rows = _rows_of(self.whole)
        return CallRows(rows, self._graphs, self.calls, whole=None if self.parts else "only whole calls were traced")

    def trace(self, rows: Iterable[int], progress: Progress) -> dict[int, TracedGraph]:
        """These graphs."""
        return {count: self._graphs[count] for count in rows}

    def edge_errors(self, whole: TracedGraph, progress: Progress) -> EdgeErrors | None:
        """What was measured of them."""
        return self.errors


def _rows_of(graph: TracedGraph) -> int:
    """Rows of the noisy sample; 1 where it has none, or is one of a list."""
    latent = next((item for item in graph.inputs if item.role is Role.LATENT), None)
    if latent is None or not latent.meta.shape or latent.name.rpartition(".")[0] in dict(graph.containers):
        return 1
    return latent.meta.shape[0]


@dataclass(frozen=True, eq=False)
class FromSpec:
    """A model by its description, traced without its weights.

    Attributes:
        spec: From ``model_spec`` (a name, folder or hub id) or ``live_spec`` (a pipeline in memory).
        denoiser: The module that the spec describes, to be traced as it is; None to build it without weights.
        fork: Trace the first number of rows here and the others at the same time, in a forked process. Only where torch
            has computed nothing in this process yet.
    """

    spec: ModelSpec
    denoiser: nn.Module | None = None
    fork: bool = False

    divides_unasked = True  # images of a batch, and guidance's parts

    @property
    def name(self) -> str:
        """The model's name."""
        return self.spec.name

    @property
    def step(self) -> CallRows:
        """The spec's."""
        return self.spec.step

    @property
    def revision(self) -> str | None:
        """The spec's."""
        return self.spec.revision

    @property
    def beside(self) -> tuple[SteppedModule, ...]:
        """The spec's."""
        return self.spec.beside

    def trace(self, rows: Iterable[int], progress: Progress) -> dict[int, TracedGraph]:
        """Trace the denoiser, which is built without weights if it is not there.

        Raises:
            TraceError: It cannot be traced.
        """
        from partitioner.models.spec import trace_model

        first, *others = sorted(rows, reverse=True)
        with without_collector():
            progress(_tracing(self.name, first, self.step.rows))
            for count in others:
                progress(_tracing(self.name, count, self.step.rows))
            more: Callable[[], dict[int, TracedGraph]] = partial(self._trace_all, others)
            if others and self.fork:
                self.spec.load()
                more = beside(more)
            found = {first: trace_model(self.spec, rows=first, denoiser=self.denoiser)}
            return {**found, **(more() if others else {})}

    def _trace_all(self, rows: Sequence[int]) -> dict[int, TracedGraph]:
        from partitioner.models.spec import trace_model

        return {count: trace_model(self.spec, rows=count, denoiser=self.denoiser) for count in rows}

    def edge_errors(self, whole: TracedGraph, progress: Progress) -> EdgeErrors | None:
        """Nothing is measured."""
        return None


def _tracing(name: str, rows: int, whole: int) -> str:
    return f"tracing {name}" if rows == whole else f"tracing {rows} of its {whole} rows"


@dataclass(frozen=True, eq=False)
class FromModule:
    """Any nn.Module that torch.export can trace.

    Attributes:
        module: The denoiser, called as ``module(**example_inputs)``.
        example_inputs: Arguments of one call.
        roles: Of each tensor argument, "latent", "timestep" or "prompt"; see ``partitioner.trace``.
        name: What plans call it.
        branch_inputs: Arguments of a call of fewer rows, such as one half of the guidance batch, where they do not
            follow from example_inputs.
        trajectory: Arguments of consecutive calls of a real trajectory, shaped as example_inputs: staleness is measured
            on them with the module's weights (32 backward passes a call) instead of estimated from the graph.
        calls: How often a step calls the module.
    """

    module: nn.Module
    example_inputs: Mapping[str, Any]
    roles: Mapping[str, Any]
    name: str = "custom"
    branch_inputs: Mapping[str, Any] | None = None
    trajectory: Sequence[Mapping[str, Any]] | None = None
    calls: int = 1

    revision = None
    beside = ()

    @property
    def divides_unasked(self) -> bool:
        """Only where the arguments of a part were given: what a module's first dimension is, is not known."""
        return self.branch_inputs is not None

    @cached_property
    def _rows(self) -> ArgumentRows:
        return ArgumentRows(self.example_inputs, self.roles, self.branch_inputs)

    @property
    def step(self) -> CallRows:
        """The rows of the latent."""
        return CallRows(self._rows.rows, self._rows.counts, self.calls, whole=self._rows.whole)

    def trace(self, rows: Iterable[int], progress: Progress) -> dict[int, TracedGraph]:
        """Trace the module with its example inputs, or with a part of their rows.

        Raises:
            TraceError: It cannot be traced.
        """
        from partitioner.graph.export import trace

        found = {}
        for count in sorted(rows, reverse=True):
            progress(_tracing(self.name, count, self.step.rows))
            found[count] = trace(self.module, self._rows.arguments(count), self.roles, model=self.name)
        return found

    def edge_errors(self, whole: TracedGraph, progress: Progress) -> EdgeErrors | None:
        """Measure staleness where a trajectory was given.

        Raises:
            UsageError: A call of the trajectory has other inputs than the example.
        """
        if self.trajectory is None:
            return None
        from partitioner.staleness.measured import measure_module_edge_errors

        progress("measuring staleness on the trajectory")
        return measure_module_edge_errors(self.module, whole, self.trajectory)
