"""Plan: which component computes which node, and how to run it. The plan file's specification.

A plan file is UTF-8 JSON, at most MAX_PLAN_BYTES, of the fields below and no others (docs/plan.schema.json is made
from them); a file with plans of several denoisers holds such an object for each (pipeline_plans.py). It MUST hold
finite numbers only, no key twice, and names that are labels: nothing in it is a path, is imported or is evaluated.
Every latent node of the traced graph MUST stand in ``placement`` exactly once. The same plan is always the same bytes.

Ranks: component k of branch b runs on rank b*N + (N-1-k), so that rank 0, the driver, has the last component of
branch 0, which makes the output.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from partitioner.errors import PlanError
from partitioner.graph.ir import TracedGraph
from partitioner.graph.nesting import nest_arguments
from partitioner.models.guidance import GuidanceStyle
from partitioner.plan.argument_checks import check_arguments
from partitioner.plan.build_programs import build_programs
from partitioner.plan.carry_over import carry_over, check_coverage, check_forward
from partitioner.plan.consistency import check_boundaries, check_branches, check_periods
from partitioner.plan.differences import boundaries_of, differences_of, is_modified
from partitioner.plan.fields import (
    ARRAY,
    ArgumentPath,
    ClassName,
    Label,
    ModelName,
    PlacementField,
    PlanRecord,
    Size,
    Versions,
    as_label,
    first_error_of,
    shown_briefly,
)
from partitioner.plan.placement import NamePlacement
from partitioner.plan.plan_files import MAX_PLAN_BYTES, as_file, check_version, read_plan_file, write_plan_file
from partitioner.plan.predictor import PredictorName
from partitioner.plan.records import (
    Boundary,
    CostSource,
    DriverModule,
    PlanContainer,
    PlanInput,
    PlanLiteral,
    Predicted,
)
from partitioner.plan.speedup import trajectory_speedup
from partitioner.search.mode import Mode

_IN_FILE_IF_SAID = (
    "containers",
    "guidance_style",
    "guidance_scale",
    "driver_modules",
    "streams",
    "branch_rows",
    "calls_per_step",
    "images",
    "alike",
    "microbatches",
)


class Plan(PlanRecord):
    """A split of one traced denoiser and how to run it; immutable, prints readably, safe to load from anywhere.

    components: N, the length of the chain. placement: node key -> component 0..N-1, in execution order.
    containers: the lists, tuples and empty dicts of inputs and literals; in the file where there are any.
    guidance_style: how the pipeline does guidance, where it is known; in the file only then. guidance_scale: what its
    quality was judged at, likewise: 1 where no second half is computed, whatever the pipeline is called with.
    driver_modules: what the pipeline calls at each step beside its denoisers; in the file where there is anything.
    branches: how many parts of the work are computed apart, exactly; inputs, fingerprint and placement are those of a
    call of one branch's rows (of the first branch, where the shares differ).
    streams: so many of a step's calls (guidance in two calls makes two) have branches of their own; branch b is one of
    stream b // (branches // streams). branch_rows: of each branch of one stream, its share of a call's rows; empty
    where all have as many. calls_per_step: how often the pipeline calls the denoiser at one timestep. In the file only
    where they are not 1, () and 1. images: of a call, each of which has as many rows as guidance has parts in one
    batch; in the file where there are several. alike: inputs whose rows are all equal in the calls whose rows branches
    share, since the denoiser reads the first for all; in the file where there are any.
    microbatches: in so many parts the rows of an exact step's calls are computed; in the file where there are several.
    periods: every how many steps each component recomputes, the last one in every step; period is the largest. warmup:
    exact first steps.
    devices: names, entry r is rank r's.
    """

    schema_version: Literal[1]
    model: ModelName
    class_name: ClassName
    revision: Label | None
    versions: Versions
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    inputs: Annotated[tuple[PlanInput, ...], Field(min_length=1, max_length=1024), *ARRAY]
    literals: Annotated[tuple[PlanLiteral, ...], Field(max_length=1024), *ARRAY]
    containers: Annotated[tuple[PlanContainer, ...], Field(max_length=1024), *ARRAY] = ()
    guidance_style: GuidanceStyle | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=1e6)] | None = None
    driver_modules: Annotated[tuple[DriverModule, ...], Field(max_length=64), *ARRAY] = ()
    components: Size
    branches: Size
    streams: Size = 1
    branch_rows: Annotated[tuple[Size, ...], Field(max_length=4096), *ARRAY] = ()
    calls_per_step: Annotated[int, Field(ge=1, le=64)] = 1
    images: Size = 1
    alike: Annotated[tuple[ArgumentPath, ...], Field(max_length=1024), *ARRAY] = ()
    microbatches: Size = 1
    period: Size
    periods: Annotated[tuple[Size, ...], Field(max_length=4096), *ARRAY]
    warmup: Annotated[int, Field(ge=1, le=2**31)]
    mode: Mode
    predictor: PredictorName
    devices: Annotated[tuple[Label, ...], Field(max_length=8192), *ARRAY]
    cost_source: CostSource
    predicted: Predicted
    boundaries: Annotated[tuple[Boundary, ...], Field(max_length=100_000), *ARRAY]
    placement: PlacementField

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        ranks = self.components * self.branches
        for name, length, expected in (
            ("periods", len(self.periods), self.components),
            ("devices", len(self.devices), ranks),
            ("predicted.components", len(self.predicted.components), ranks),
        ):
            if length != expected:
                raise ValueError(f"{name} has {length} entries, expected {expected}")
        check_branches(self.branches, self.streams, self.branch_rows, self.calls_per_step)
        check_periods(self.period, self.periods, self.mode)
        if set(self.placement.values()) != set(range(self.components)):
            raise ValueError(f"placement must use every component from 0 to {self.components - 1} and no other")
        check_arguments(self.inputs, self.literals, self.containers, self.alike)
        self.example_arguments({item.path: None for item in self.inputs})
        check_boundaries(self.boundaries, self.placement, self.components, self.mode)
        return self

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a plan file; PlanError in one sentence for anything that is not a valid plan."""
        return cls.parse(read_plan_file(path, MAX_PLAN_BYTES), str(path))

    @classmethod
    def parse(cls, document: object, name: str = "the plan") -> Self:
        """A plan from a JSON document; PlanError names the first field that is wrong."""
        if not isinstance(document, dict):
            raise PlanError(f"{name} is no plan: expected an object, got {shown_briefly(document)}")
        check_version(document, name)
        if "plans" in document:
            raise PlanError(f"{name} holds the plans of several denoisers, not one: read it with load_plans")
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise PlanError(f"{name} is no valid plan: {first_error_of(error)}") from None

    @classmethod
    def from_split(
        cls,
        graph: TracedGraph,
        placement: NamePlacement,
        *,
        components: int,
        devices: Sequence[str],
        predicted: Predicted,
        cost_source: CostSource,
        versions: Mapping[str, str],
        revision: str | None = None,
        branches: int = 1,
        streams: int = 1,
        branch_rows: Sequence[int] = (),
        calls_per_step: int = 1,
        images: int = 1,
        alike: Sequence[str] = (),
        microbatches: int = 1,
        periods: Sequence[int] | None = None,
        warmup: int = 1,
        mode: Mode = "lookahead",
        predictor: PredictorName = "hold",
        guidance_style: GuidanceStyle | None = None,
        guidance_scale: float | None = None,
        driver_modules: Sequence[DriverModule] = (),
    ) -> Self:
        """The plan of a split. PlanError if it does not hold together."""
        in_order = {node.name: placement[node.name] for node in graph.latent_nodes}
        build_programs(graph, in_order, components)
        periods = tuple(periods) if periods is not None else (1,) * components
        try:
            return cls(
                schema_version=1,
                model="/".join(map(as_label, graph.model.split("/")[:2])),
                class_name=graph.class_name,
                revision=revision,
                versions=dict(sorted(versions.items())),
                fingerprint=graph.fingerprint,
                inputs=_inputs_of(graph),
                literals=tuple(PlanLiteral(path=path, value=value) for path, value in graph.literals),
                containers=_containers_of(graph),
                guidance_style=guidance_style,
                guidance_scale=guidance_scale,
                driver_modules=tuple(driver_modules),
                components=components,
                branches=branches,
                streams=streams,
                branch_rows=tuple(branch_rows),
                calls_per_step=calls_per_step,
                images=images,
                alike=tuple(alike),
                microbatches=microbatches,
                period=max(periods, default=1),
                periods=periods,
                warmup=warmup,
                mode=mode,
                predictor=predictor,
                devices=tuple(devices),
                cost_source=cost_source,
                predicted=predicted,
                boundaries=boundaries_of(graph, in_order),
                placement={node.key: in_order[node.name] for node in graph.latent_nodes},
            )
        except ValidationError as error:
            raise PlanError(f"no plan can be made of this split: {first_error_of(error)}") from None

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write the plan file, whole or not at all; PlanError if it exists or cannot be written."""
        write_plan_file(path, self.canonical, overwrite)

    @property
    def document(self) -> dict[str, Any]:
        """What the plan's file holds: fields as in the class, nodes in execution order."""
        # earlier releases know no such fields
        fields = type(self).model_fields
        unused = {name for name in _IN_FILE_IF_SAID if getattr(self, name) == fields[name].default}
        return self.model_dump(mode="json", exclude=unused)

    @cached_property
    def canonical(self) -> bytes:
        """The bytes of the plan's file, one item a line."""
        return as_file(self.document, MAX_PLAN_BYTES)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the plan's file: two ranks with the same digest run the same plan."""
        return hashlib.sha256(self.canonical).hexdigest()

    @property
    def ranks(self) -> int:
        """How many ranks run the plan."""
        return self.components * self.branches

    @property
    def branches_per_stream(self) -> int:
        """How many branches share the rows of one call; those of stream s begin with branch s times as many."""
        return self.branches // self.streams

    @property
    def calls_of_branch(self) -> int:
        """How many of a step's calls the busiest branch computes."""
        return math.ceil(self.calls_per_step / self.streams)

    @property
    def rows_of_branches(self) -> list[int]:
        """Rows of a call of each branch of one stream, as the plan was made for; 1 where the samples are a list."""
        latent = next(item for item in self.inputs if item.role == "latent")
        each = latent.shape[0] if latent.shape and "." not in latent.path else 1
        return list(self.branch_rows) or [each] * self.branches_per_stream

    def speedup(
        self, steps: int, scheduler: str | None = None, config: str = "", exact_share: float | None = None
    ) -> float:
        """Predicted; see ``trajectory_speedup``."""
        figures = self.predicted
        return trajectory_speedup(
            steps,
            scheduler,
            self.mode,
            self.warmup,
            sequential_ms=figures.sequential_ms,
            first_step_ms=figures.exact_step_ms * self.calls_per_step / self.calls_of_branch,
            exact_step_ms=figures.exact_step_ms,
            step_ms=figures.step_ms,
            config=config,
            exact_share=exact_share,
        )

    @property
    def origin(self) -> str:
        """What the plan was made for: 'svd (UNetSpatioTemporalConditionModel)'."""
        return f"{self.model} ({self.class_name})"

    def example_arguments(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of the call that the plan was made for.

        Args:
            tensors: The inputs, or whatever stands for them, by path.
        """
        values = {**tensors, **{item.path: item.value for item in self.literals}}
        return nest_arguments(values, {item.path: item.kind for item in self.containers})

    def same_inputs(self, graph: TracedGraph) -> bool:
        """Whether the graph was traced for the inputs that the plan was made for."""
        literals = tuple((item.path, item.value) for item in self.literals)
        given = self.inputs, literals, self.containers
        return given == (_inputs_of(graph), graph.literals, _containers_of(graph))

    def check(self, graph: TracedGraph) -> None:
        """PlanError with the first differences if the graph is not the one that the plan was made for.

        A graph traced for other inputs (another resolution, batch or dtype) passes: ``place`` says whether it fits.
        """
        if not self.same_inputs(graph):
            return
        differences = differences_of(self.class_name, self.placement, graph)
        if graph.fingerprint != self.fingerprint and not differences:
            differences = [f"operators or shapes (fingerprint {self.fingerprint[:12]}… and {graph.fingerprint[:12]}…)"]
        if differences:
            raise PlanError(
                f"the plan was made for {self.origin} and this is another one: {'; '.join(differences)}; "
                "make a plan for it"
            )
        placed = {node.name: self.placement[node.key] for node in graph.latent_nodes}
        build_programs(graph, placed, self.components)
        if self.mode == "lookahead":
            check_forward(graph, placed, self.origin)
        if self.boundaries != boundaries_of(graph, placed):
            raise PlanError(
                f"the boundaries in the plan for {self.origin} are not those of its placement; "
                "make the plan again with partition-model"
            )

    def is_of_modified(self, graph: TracedGraph) -> bool:
        """Whether a graph is that of this plan's denoiser with a LoRA, other processors or the like put into it."""
        return is_modified(self.class_name, self.placement, graph)

    def place(self, graph: TracedGraph, *, same_denoiser: bool = False) -> dict[str, int]:
        """Latent node name -> component, in execution order, also for another resolution or batch or with a LoRA.

        same_denoiser: the graph is known to be of the plan's denoiser, however much its arguments change (some have it
        skip layers). PlanError says how to make a plan if the graph is too different.
        """
        if not same_denoiser:
            check_coverage(self.placement, graph, self.origin)
        return carry_over(self.placement, graph, self.mode == "lookahead", self.origin)


def _inputs_of(graph: TracedGraph) -> tuple[PlanInput, ...]:
    return tuple(
        PlanInput(path=item.name, shape=item.meta.shape, dtype=item.meta.dtype, role=item.role.name.lower())  # type: ignore[arg-type]
        for item in graph.inputs
    )


def _containers_of(graph: TracedGraph) -> tuple[PlanContainer, ...]:
    return tuple(PlanContainer(path=path, kind=kind) for path, kind in graph.containers)  # type: ignore[arg-type]
