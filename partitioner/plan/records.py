"""The records of a plan file: inputs, boundary tensors, predicted figures, where the costs came from."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from partitioner.graph.nesting import ContainerKind
from partitioner.graph.nodes import DTYPE_BYTES
from partitioner.plan.fields import (
    ARRAY,
    ArgumentPath,
    ClassName,
    Count,
    DenoiserName,
    Dtype,
    Figure,
    InputRole,
    Label,
    NodeKey,
    PlanRecord,
    TensorShape,
    shown_briefly,
)

_LATER_FIGURES = ("message_bytes", "slot_bytes", "graph_bytes")


class PlanInput(PlanRecord):
    """A tensor argument of the denoiser as it was traced; path such as "added_cond_kwargs.text_embeds"."""

    path: ArgumentPath
    shape: TensorShape
    dtype: Dtype
    role: InputRole


class PlanLiteral(PlanRecord):
    """An argument that is no tensor."""

    path: ArgumentPath
    value: (
        bool | Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | float | Annotated[str, Field(max_length=256)] | None
    )


class PlanContainer(PlanRecord):
    """A list, a tuple or an empty dict among the arguments; every other path leads through dicts."""

    path: ArgumentPath
    kind: ContainerKind


class DriverModule(PlanRecord):
    """A module that the pipeline calls at each step beside its denoisers, such as a ControlNet: no plan splits it.

    It runs whole in the pipeline, on the driver's device. name: what the pipeline calls it.
    """

    name: DenoiserName
    class_name: ClassName
    parameters: Count
    parameter_bytes: Count


class Boundary(PlanRecord):
    """A tensor that other components read. key: the node that makes it; source and readers: components."""

    key: NodeKey
    source: Count
    readers: Annotated[tuple[Count, ...], Field(min_length=1, max_length=4096), *ARRAY]
    dtype: Dtype
    shape: TensorShape
    size_bytes: Count

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        expected = math.prod(self.shape) * DTYPE_BYTES[self.dtype]
        if self.size_bytes != expected:
            raise ValueError(
                f"size_bytes of {shown_briefly(self.key)} is {self.size_bytes}, its shape makes {expected}"
            )
        if list(self.readers) != sorted(set(self.readers) - {self.source}):
            raise ValueError(f"readers of {shown_briefly(self.key)} must be ascending, each once, without its source")
        return self


class PredictedComponent(PlanRecord):
    """What one component of one branch is predicted to cost in a step, and to hold; macs of one call.

    memory_bytes: parameters, what is kept of prompts, activations and messages. message_bytes: of that, what messages
    take. slot_bytes: of those, slots for what is sent, which there are only between GPUs. graph_bytes: what CUDA graphs
    take besides; None in files of earlier releases, which have none of the three.
    """

    compute_ms: Figure
    macs: Count
    parameters: Count
    parameter_bytes: Count
    memory_bytes: Count
    receive_bytes: Count
    send_bytes: Count
    message_bytes: Count = 0
    slot_bytes: Count = 0
    graph_bytes: Count | None = None

    @model_validator(mode="after")
    def _parts(self) -> Self:
        if not self.slot_bytes <= self.message_bytes <= self.memory_bytes:
            raise ValueError(
                f"slot_bytes, message_bytes and memory_bytes are {self.slot_bytes}, {self.message_bytes} and "
                f"{self.memory_bytes}; each is a part of the next"
            )
        return self

    @model_serializer(mode="wrap")
    def _if_said(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what a file of an earlier release lacks, so that its bytes stay."""
        fields: dict[str, Any] = write(self)
        return fields if self.graph_bytes is not None else {k: v for k, v in fields.items() if k not in _LATER_FIGURES}


class Predicted(PlanRecord):
    """Predicted figures: times in ms, sizes in bytes, macs of one denoiser call over all branches.

    A step is all calls of one timestep: guidance in two calls has two. sequential_ms: a step on the fastest device
    alone; exact_step_ms: a warm-up step, component after component, its streams on their branches at the same time.
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
    components: Annotated[tuple[PredictedComponent, ...], Field(min_length=1, max_length=8192), *ARRAY]


class CostSource(PlanRecord):
    """Where the costs came from. covered: share of the total time that was measured."""

    kind: Literal["measured", "roofline"]
    device: Label
    covered: Annotated[float, Field(ge=0, le=1)]
