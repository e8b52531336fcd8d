"""Plan: which component computes which node, and how to run it. The plan file's specification.

A plan file is UTF-8 JSON, at most MAX_PLAN_BYTES, of the fields below and no others (docs/plan.schema.json is made
from them). It MUST hold finite numbers only, no key twice, and names that are labels: nothing in it is a path, is
imported or is evaluated. Every latent node of the traced graph MUST stand in ``placement`` exactly once. The same plan
is always the same bytes.

Ranks: component k of branch b runs on rank b*N + (N-1-k), so that rank 0, the driver, has the last component of
branch 0, which makes the output.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, ValidationError, model_validator

from partitioner.errors import PlanError
from partitioner.ir import DTYPE_BYTES, TracedGraph
from partitioner.placement import carry_over, check_forward
from partitioner.program import build_programs, find_boundaries
from partitioner.samplers import denoiser_calls, exact_calls
from profiles.strict_json import JsonFileError, read_json, write_atomic

SCHEMA_VERSION = 1
MAX_PLAN_BYTES = 4 << 20  # the largest known denoiser, 16,000 nodes, needs 2 MiB

Mode = Literal["async", "lookahead"]
Predictor = Literal["hold", "linear", "adaptive"]
Role = Literal["latent", "timestep", "prompt", "constant"]

# "module.path/operator.number"; module names are what add_module takes, and "@1" marks a module's second call
KEY_PATTERN = r"^([A-Za-z0-9_@-]+(\.[A-Za-z0-9_@-]+)*)?/[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*\.[0-9]+$"
_KEY = re.compile(KEY_PATTERN)
Key = Annotated[str, Field(pattern=KEY_PATTERN, max_length=512)]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$")]
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?$")]
ArgumentPath = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*$", max_length=256)]
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
Figure = Annotated[float, Field(ge=0, le=1e15)]
Size = Annotated[int, Field(ge=1, le=4096)]


def _from_array(value: object) -> object:
    """JSON has arrays only; strict validation expects a tuple."""
    return tuple(value) if isinstance(value, list) else value


_ARRAY = (FailFast(), BeforeValidator(_from_array))
Shape = Annotated[tuple[Annotated[int, Field(ge=0, le=2**40)], ...], Field(max_length=16), *_ARRAY]


def rank_of(branch: int, component: int, components: int) -> int:
    """The rank that runs a component of a branch; rank 0 has the last component of branch 0."""
    return branch * components + components - 1 - component


def seat_of(rank: int, components: int) -> tuple[int, int]:
    """(branch, component) of a rank: the inverse of rank_of."""
    return rank // components, components - 1 - rank % components


def as_label(text: str) -> str:
    """A name as plans allow it: "NVIDIA H200 (1)" -> "NVIDIA-H200-1"."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-._+")[:128] or "unknown"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


def _check_dtype(value: object) -> object:
    if not isinstance(value, str) or value not in DTYPE_BYTES:
        raise ValueError(f"expected a dtype such as float16, got {_shown(value)}")
    return value


Dtype = Annotated[str, BeforeValidator(_check_dtype), Field(json_schema_extra={"enum": list(DTYPE_BYTES)})]


class PlanInput(_Record):
    """A tensor argument of the denoiser as it was traced; path such as "added_cond_kwargs.text_embeds"."""

    path: ArgumentPath
    shape: Shape
    dtype: Dtype
    role: Role


class PlanLiteral(_Record):
    """An argument that is no tensor."""

    path: ArgumentPath
    value: (
        bool | Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | float | Annotated[str, Field(max_length=256)] | None
    )


class Boundary(_Record):
    """A tensor that other components read. key: the node that makes it; source and readers: components."""

    key: Key
    source: Count
    readers: Annotated[tuple[Count, ...], Field(min_length=1, max_length=4096), *_ARRAY]
    dtype: Dtype
    shape: Shape
    size_bytes: Count

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        expected = math.prod(self.shape) * DTYPE_BYTES[self.dtype]
        if self.size_bytes != expected:
            raise ValueError(f"size_bytes of {_shown(self.key)} is {self.size_bytes}, its shape makes {expected}")
        if list(self.readers) != sorted(set(self.readers) - {self.source}):
            raise ValueError(f"readers of {_shown(self.key)} must be ascending, each once, without its source")
        return self


class PredictedComponent(_Record):
    """What one component of one branch is predicted to cost in a step, and to hold."""

    compute_ms: Figure
    macs: Count
    parameters: Count
    parameter_bytes: Count
    memory_bytes: Count
    receive_bytes: Count
    send_bytes: Count


class Predicted(_Record):
    """Predicted figures: times in ms, sizes in bytes, macs of one denoiser call over all branches.

    sequential_ms: a call on the fastest device alone; exact_step_ms: a warm-up step, component after component.
    gap: slowest component over lower_bound_ms, minus 1. components: entry branch * N + component.
    """

    sequential_ms: Figure
    step_ms: Figure
    exact_step_ms: Figure
    lower_bound_ms: Figure
    gap: Annotated[float, Field(ge=-1, le=1e15)]
    speedup_step: Figure
    bytes_per_step: Count
    staleness: Figure
    macs: Count
    components: Annotated[tuple[PredictedComponent, ...], Field(min_length=1, max_length=8192), *_ARRAY]


class CostSource(_Record):
    """Where the costs came from. covered: share of the total time that was measured."""

    kind: Literal["measured", "roofline"]
    device: Label
    covered: Annotated[float, Field(ge=0, le=1)]


def _check_placement(value: object) -> object:
    """First error only: a hostile file could make a million."""
    if not isinstance(value, dict) or not value:
        raise ValueError("expected an object of node keys and component numbers")
    for key, component in value.items():
        if not isinstance(key, str) or len(key) > 512 or not _KEY.fullmatch(key):
            raise ValueError(f"{_shown(key)} is no node key; expected module.path/operator.number")
        if type(component) is not int or not 0 <= component < 4096:
            raise ValueError(f"node {_shown(key)} is on component {_shown(component)}; expected a number from 0")
    return value


def _check_versions(value: object) -> object:
    if not isinstance(value, dict) or len(value) > 64:
        raise ValueError("expected an object of package names and versions")
    return value


def trajectory_speedup(
    steps: int,
    scheduler: str | None,
    mode: Mode,
    warmup: int,
    *,
    sequential_ms: float,
    exact_step_ms: float,
    step_ms: float,
) -> float:
    """Over a trajectory of so many steps, its exact calls at their cost; times of one call.

    scheduler: a class of diffusers; None for one that calls the denoiser once per step.
    """
    calls = denoiser_calls(scheduler, steps)
    exact = min(exact_calls(scheduler, mode, warmup), calls)
    total = exact * exact_step_ms + (calls - exact) * step_ms
    return round(sequential_ms * calls / total, 6) if total > 0 else 1.0


class Plan(_Record):
    """A split of one traced denoiser and how to run it; immutable, prints readably, safe to load from anywhere.

    components: N, the length of the chain. placement: node key -> component 0..N-1, in execution order.
    branches: 2 if the guidance batch is halved; inputs, fingerprint and placement are then those of one half.
    periods: every how many steps each component recomputes; period is the largest. warmup: exact first steps.
    devices: names, entry r is rank r's.
    """

    schema_version: Literal[1]
    model: ModelName
    class_name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
    revision: Label | None
    versions: Annotated[dict[Label, Label], BeforeValidator(_check_versions)]
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    inputs: Annotated[tuple[PlanInput, ...], Field(min_length=1, max_length=1024), *_ARRAY]
    literals: Annotated[tuple[PlanLiteral, ...], Field(max_length=1024), *_ARRAY]
    components: Size
    branches: Annotated[int, Field(ge=1, le=2)]
    period: Size
    periods: Annotated[tuple[Size, ...], Field(max_length=4096), *_ARRAY]
    warmup: Annotated[int, Field(ge=1, le=2**31)]
    mode: Mode
    predictor: Predictor
    devices: Annotated[tuple[Label, ...], Field(max_length=8192), *_ARRAY]
    cost_source: CostSource
    predicted: Predicted
    boundaries: Annotated[tuple[Boundary, ...], Field(max_length=100_000), *_ARRAY]
    placement: Annotated[dict[Key, Annotated[int, Field(ge=0, lt=4096)]], BeforeValidator(_check_placement)]

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
        if max(self.periods) != self.period:
            raise ValueError(f"period is {self.period}, the largest of periods is {max(self.periods)}")
        if set(self.placement.values()) != set(range(self.components)):
            raise ValueError(f"placement must use every component from 0 to {self.components - 1} and no other")
        self._check_boundaries()
        return self

    def _check_boundaries(self) -> None:
        seen: set[str] = set()
        for boundary in self.boundaries:
            key = _shown(boundary.key)
            if boundary.key in seen:
                raise ValueError(f"boundary {key} stands twice")
            seen.add(boundary.key)
            if self.placement.get(boundary.key) != boundary.source:
                raise ValueError(f"boundary {key} is not placed on its source, component {boundary.source}")
            if boundary.readers[-1] >= self.components:
                raise ValueError(f"boundary {key} is read by component {boundary.readers[-1]} of {self.components}")
            if self.mode == "lookahead" and boundary.readers[0] < boundary.source:
                raise ValueError(f"boundary {key} goes back along the chain, which look-ahead cannot do")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a plan file; PlanError in one sentence for anything that is not a valid plan."""
        try:
            document = read_json(path, MAX_PLAN_BYTES)
        except JsonFileError as error:
            raise PlanError(str(error)) from None
        return cls.parse(document, str(path))

    @classmethod
    def parse(cls, document: object, name: str = "the plan") -> Self:
        """A plan from a JSON document; PlanError names the first field that is wrong."""
        if not isinstance(document, dict):
            raise PlanError(f"{name} is no plan: expected an object, got {_shown(document)}")
        version = document.get("schema_version")
        if type(version) is not int or version != SCHEMA_VERSION:
            raise PlanError(
                f"{name} has plan schema version {_shown(version)}; this release reads version {SCHEMA_VERSION}: "
                "make the plan again with partition-model"
            )
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise PlanError(f"{name} is no valid plan: {_first_error(error)}") from None

    @classmethod
    def from_split(
        cls,
        graph: TracedGraph,
        placed: Mapping[str, int],
        *,
        components: int,
        devices: Sequence[str],
        predicted: Predicted,
        cost_source: CostSource,
        versions: Mapping[str, str],
        revision: str | None = None,
        branches: int = 1,
        periods: Sequence[int] | None = None,
        warmup: int = 1,
        mode: Mode = "lookahead",
        predictor: Predictor = "hold",
    ) -> Self:
        """The plan of a split. placed: latent node name -> component. PlanError if it does not hold together."""
        in_order = {node.name: placed[node.name] for node in graph.latent_nodes}
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
                components=components,
                branches=branches,
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
            raise PlanError(f"no plan can be made of this split: {_first_error(error)}") from None

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write the plan file, whole or not at all; PlanError if it exists or cannot be written."""
        try:
            write_atomic(path, self.canonical, overwrite)
        except JsonFileError as error:
            raise PlanError(str(error)) from None

    @cached_property
    def canonical(self) -> bytes:
        """The bytes of the plan's file: fields as in the class, nodes in execution order, one item a line."""
        text = json.dumps(self.model_dump(mode="json"), ensure_ascii=False, allow_nan=False, indent=1)
        data = (text + "\n").encode()
        if len(data) > MAX_PLAN_BYTES:
            raise PlanError(f"the plan would have {len(data)} bytes; at most {MAX_PLAN_BYTES} are read")
        return data

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the plan's file: two ranks with the same digest run the same plan."""
        return hashlib.sha256(self.canonical).hexdigest()

    @property
    def ranks(self) -> int:
        """How many ranks run the plan."""
        return self.components * self.branches

    def speedup(self, steps: int, scheduler: str | None = None) -> float:
        """Predicted; see ``trajectory_speedup``."""
        figures = self.predicted
        return trajectory_speedup(
            steps,
            scheduler,
            self.mode,
            self.warmup,
            sequential_ms=figures.sequential_ms,
            exact_step_ms=figures.exact_step_ms,
            step_ms=figures.step_ms,
        )

    @property
    def origin(self) -> str:
        """What the plan was made for: 'svd (UNetSpatioTemporalConditionModel)'."""
        return f"{self.model} ({self.class_name})"

    def same_inputs(self, graph: TracedGraph) -> bool:
        """Whether the graph was traced for the inputs that the plan was made for."""
        literals = tuple((item.path, item.value) for item in self.literals)
        return self.inputs == _inputs_of(graph) and literals == graph.literals

    def check(self, graph: TracedGraph) -> None:
        """PlanError with the first differences if the graph is not the one that the plan was made for.

        A graph traced for other inputs (another resolution, batch or dtype) passes: ``place`` says whether it fits.
        """
        if not self.same_inputs(graph):
            return
        differences = self._differences(graph)
        if graph.fingerprint != self.fingerprint and not differences:
            differences = [f"operators or shapes (fingerprint {self.fingerprint[:12]}… and {graph.fingerprint[:12]}…)"]
        if differences:
            raise PlanError(
                f"the plan was made for {self.origin} and this is another one: {'; '.join(differences)}; "
                f"make a plan for it: partition-model --model {graph.model} --devices {self.ranks}"
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

    def place(self, graph: TracedGraph) -> dict[str, int]:
        """Latent node name -> component, in execution order, also for another resolution or batch or with a LoRA.

        PlanError says how to make a plan if the graph is too different.
        """
        return carry_over(self.placement, graph, self.mode == "lookahead", self.origin)

    def _differences(self, graph: TracedGraph) -> list[str]:
        """The first few differences in words: class, nodes that are missing or new."""
        found = [f"class {graph.class_name}"] if graph.class_name != self.class_name else []
        keys = {node.key: None for node in graph.latent_nodes}
        for text, one, other in (
            ("is not in the model", self.placement, keys),
            ("is not in the plan", keys, self.placement),
        ):
            only = [key for key in one if key not in other]
            found += [f"node {_shown(key)} {text}" for key in only[:2]]
            if len(only) > 2:
                found.append(f"nor are {len(only) - 2} more")
        return found


def boundaries_of(graph: TracedGraph, placed: Mapping[str, int]) -> tuple[Boundary, ...]:
    """The boundary tensors of a placement (latent node name -> component), in execution order."""
    found = []
    for cut in find_boundaries(graph, placed):
        node = graph.node_by_name[cut.value]
        found.append(
            Boundary(
                key=node.key,
                source=cut.source,
                readers=cut.readers,
                dtype=node.meta.dtype,
                shape=node.meta.shape,
                size_bytes=node.meta.size_bytes,
            )
        )
    return tuple(found)


def plan_schema() -> dict[str, Any]:
    """The JSON schema of a plan file, as published in docs/plan.schema.json."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Plan.model_json_schema(mode="validation")}


def _inputs_of(graph: TracedGraph) -> tuple[PlanInput, ...]:
    return tuple(
        PlanInput(path=item.name, shape=item.meta.shape, dtype=item.meta.dtype, role=item.role.name.lower())  # type: ignore[arg-type]
        for item in graph.inputs
    )


def _first_error(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    where = ".".join(str(part)[:80] for part in first["loc"])
    if first["type"] in ("value_error", "missing", "extra_forbidden"):
        return f"{where}: {message}" if where else message
    return f"{where}: {message}, got {_shown(first['input'])}"


def _shown(value: Any) -> str:
    """A short, printable form of something that a stranger wrote."""
    if isinstance(value, (dict, list, tuple)):
        return f"{'an object' if isinstance(value, dict) else 'an array'} of {len(value)}"
    text = ascii(value) if not isinstance(value, int) or value.bit_length() < 256 else "a huge number"
    return text if len(text) <= 80 else f"{text[:77]}…"
