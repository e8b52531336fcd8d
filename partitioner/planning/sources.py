"""Where the planner gets a denoiser's graphs from: a model's description, a module, or graphs that are traced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from partitioner.graph.ir import TracedGraph
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
    def has_halves(self) -> bool:
        """Whether a call holds both halves of the guidance batch, so that two branches are possible."""

    def trace(self, halves: bool, progress: Progress) -> FromGraphs:
        """The graph of a whole call, and that of one half of its batch if ``halves`` is set."""


@dataclass(frozen=True, eq=False)
class FromGraphs:
    """Graphs that are traced already.

    Attributes:
        whole: Of a whole call.
        half: Of one half of the guidance batch; None where a call does not hold both halves.
        edge_errors: Measured staleness of the whole graph's edges, which are the half's too; None: not measured.
        revision: The commit of the model on the hub, where it has one.
        beside: What the pipeline calls at each step beside its denoisers.
    """

    whole: TracedGraph
    half: TracedGraph | None = None
    edge_errors: EdgeErrors | None = None
    revision: str | None = None
    beside: tuple[SteppedModule, ...] = ()

    @property
    def name(self) -> str:
        """The name that the graph was traced under."""
        return self.whole.model

    @property
    def has_halves(self) -> bool:
        """Whether there is a graph of one half."""
        return self.half is not None

    def trace(self, halves: bool, progress: Progress) -> FromGraphs:
        """These graphs."""
        return self


@dataclass(frozen=True, eq=False)
class FromSpec:
    """A model by its description, traced without its weights.

    Attributes:
        spec: From ``model_spec`` (a name, folder or hub id) or ``live_spec`` (a pipeline in memory).
        denoiser: The module that the spec describes, to be traced as it is; None to build it without weights.
        fork: Trace the whole call and the half at the same time, the latter in a forked process. Only where torch has
            computed nothing in this process yet.
    """

    spec: ModelSpec
    denoiser: nn.Module | None = None
    fork: bool = False

    @property
    def name(self) -> str:
        """The model's name."""
        return self.spec.name

    @property
    def has_halves(self) -> bool:
        """Whether the model's pipeline puts both halves of the guidance batch in one call."""
        return self.spec.halves == 2

    def trace(self, halves: bool, progress: Progress) -> FromGraphs:
        """Trace the denoiser, which is built without weights if it is not there.

        Raises:
            TraceError: It cannot be traced.
        """
        from partitioner.models.spec import trace_model

        with without_collector():
            progress(f"tracing {self.name}")
            half_of: Callable[[], TracedGraph] | None = None
            if halves:
                progress("tracing one half of its guidance batch")
                half_of = partial(trace_model, self.spec, branch=True, denoiser=self.denoiser)
                if self.fork:
                    self.spec.load()
                    half_of = beside(half_of)
            whole = trace_model(self.spec, denoiser=self.denoiser)
            half = None if half_of is None else half_of()
        return FromGraphs(whole, half, revision=self.spec.revision, beside=self.spec.beside)


@dataclass(frozen=True, eq=False)
class FromModule:
    """Any nn.Module that torch.export can trace.

    Attributes:
        module: The denoiser, called as ``module(**example_inputs)``.
        example_inputs: Arguments of one call.
        roles: Of each tensor argument, "latent", "timestep" or "prompt"; see ``partitioner.trace``.
        name: What plans call it.
        branch_inputs: Arguments of one half of the guidance batch, where ``example_inputs`` hold both halves.
        trajectory: Arguments of consecutive calls of a real trajectory, shaped as example_inputs: staleness is measured
            on them with the module's weights (32 backward passes a call) instead of estimated from the graph.
    """

    module: nn.Module
    example_inputs: Mapping[str, Any]
    roles: Mapping[str, Any]
    name: str = "custom"
    branch_inputs: Mapping[str, Any] | None = None
    trajectory: Sequence[Mapping[str, Any]] | None = None

    @property
    def has_halves(self) -> bool:
        """Whether the arguments of one half were given."""
        return self.branch_inputs is not None

    def trace(self, halves: bool, progress: Progress) -> FromGraphs:
        """Trace the module with its example inputs, and measure staleness where a trajectory was given.

        Raises:
            TraceError: It cannot be traced.
            UsageError: A call of the trajectory has other inputs than the example.
        """
        from partitioner.graph.export import trace

        progress(f"tracing {self.name}")
        whole = trace(self.module, self.example_inputs, self.roles, model=self.name)
        half = None
        if halves and self.branch_inputs is not None:
            half = trace(self.module, self.branch_inputs, self.roles, model=self.name)
        edge_errors = None
        if self.trajectory is not None:
            from partitioner.staleness.measured import measure_module_edge_errors

            progress("measuring staleness on the trajectory")
            edge_errors = measure_module_edge_errors(self.module, whole, self.trajectory)
        return FromGraphs(whole, half, edge_errors)
