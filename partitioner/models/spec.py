"""ModelSpec: how to build a denoiser, its example inputs and their roles; and trace_model, which traces it.

Torch and diffusers are imported only when something is built.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from partitioner.errors import UsageError
from partitioner.graph.nodes import Role
from partitioner.limits import DTYPES
from partitioner.models.call_rows import CallRows
from partitioner.models.guidance import GuidanceStyle
from partitioner.models.inputs import Inputs, roles_in, zeros
from partitioner.models.registry import ARCHITECTURES
from partitioner.models.source import diffusers_class

if TYPE_CHECKING:
    import torch
    from torch import nn

    from partitioner.graph.ir import TracedGraph


@dataclass(frozen=True, slots=True)
class SteppedModule:
    """A module that a pipeline calls at each step beside its denoisers, such as a ControlNet.

    Attributes:
        name: What the pipeline calls it.
        class_name: Its class.
        parameters: How many it has.
        parameter_bytes: What they take.
    """

    name: str
    class_name: str
    parameters: int
    parameter_bytes: int


@dataclass(frozen=True)
class ModelSpec:
    """How to build a denoiser, its example inputs and their roles; a value that builds nothing until asked.

    Attributes:
        name: What plans call the model.
        class_name: The class of the denoiser.
        inputs: The arguments of one call.
        step: The calls of a step, and their rows.
        inputs_for: The arguments of a call of so many rows.
        dtype: "float16", "bfloat16" or "float32".
        make: Makes the denoiser, with torch's default dtype.
        revision: The commit of a hub id, else None.
        scheduler: The class of the pipeline's sampler; None where it is not known.
        scheduler_config: How that class is configured, see ``partitioner.models.samplers``; "" where it is not known.
        steps: Of one generation, by the pipeline's default; None where that is not known.
        guidance_style: How guidance is done, see ``guidance_style``.
        guidance_scale: The pipeline's, by default or as it will be called; None where that is not known.
        recorded: What a call of the pipeline showed, in words; None where a description gave the inputs.
        beside: What the pipeline calls at each step beside its denoisers.
    """

    name: str
    class_name: str
    inputs: Inputs
    step: CallRows
    inputs_for: Callable[[int], Inputs] = field(compare=False, repr=False)
    dtype: str
    make: Callable[[], nn.Module]
    revision: str | None = None
    scheduler: str | None = None
    steps: int | None = None
    guidance_style: GuidanceStyle = "none"
    recorded: str | None = None
    beside: tuple[SteppedModule, ...] = ()
    scheduler_config: str = ""
    guidance_scale: float | None = None

    def load(self) -> None:
        """Import what building and tracing need, which takes seconds; else the first ``trace_model`` does it."""
        importlib.import_module("partitioner.graph.export")
        if self.class_name in ARCHITECTURES and ARCHITECTURES[self.class_name].build is None:
            diffusers_class(self.class_name)

    def build(self) -> nn.Module:
        """The denoiser in eval mode, with random weights; inside ``graph.export.fake_mode()`` without any."""
        import torch

        before = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, self.dtype))
        try:
            return self.make().eval()
        finally:
            torch.set_default_dtype(before)

    @property
    def roles(self) -> dict[str, Role]:
        """Role of each tensor argument, by its path ("added_cond_kwargs.text_embeds")."""
        return dict(roles_in(self.inputs))

    def example_inputs(self, *, rows: int | None = None) -> dict[str, Any]:
        """Arguments of one call, with tensors of zeros.

        Args:
            rows: Those of a call of so many rows; None: of a whole call.

        Raises:
            UsageError: A call cannot be divided so.
        """
        if rows is not None and rows not in self.step.counts:
            why = f": {self.step.whole}" if self.step.whole is not None else ""
            raise UsageError(f"a call of {self.name} has {self.step.rows} rows, of which {rows} are no part{why}")
        whole = rows in (None, self.step.rows)
        arguments: dict[str, Any] = zeros(self.inputs if whole else self.inputs_for(rows or 1), self.dtype)
        return arguments


def trace_model(spec: ModelSpec, *, rows: int | None = None, denoiser: nn.Module | None = None) -> TracedGraph:
    """Trace a denoiser with the inputs of its spec.

    Args:
        spec: The denoiser and its inputs.
        rows: Trace a call of so many rows; None: a whole call.
        denoiser: The one in memory, traced with all that was done to it since it was made (LoRA, fused layers, hooks).
            Default: one that is built without weights.

    Raises:
        TraceError: The denoiser cannot be traced.
        UsageError: A call cannot be divided so.
    """
    from partitioner.graph.export import fake_mode, trace
    from partitioner.graph.fakes import traceable

    if denoiser is not None:
        with traceable(denoiser):
            return trace(denoiser, spec.example_inputs(rows=rows), spec.roles, model=spec.name)
    with fake_mode():
        return trace(spec.build(), spec.example_inputs(rows=rows), spec.roles, model=spec.name)


def dtype_name(dtype: str | torch.dtype) -> str:
    """The name of a dtype that plans are made for; UsageError for another."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise UsageError(f"--dtype {name} is not one of {', '.join(DTYPES)}")
    return name
