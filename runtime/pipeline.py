"""parallelize: puts an engine in a diffusers pipeline, in place of its denoiser."""

from __future__ import annotations

import json
import os
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from partitioner.graph.arguments import bind_arguments
from partitioner.plan.plan import Plan
from runtime.engine import Engine
from runtime.errors import InputError, PlanMismatch
from runtime.options import EngineOptions
from runtime.torchrun import join, launched

DENOISER_NAMES = ("unet", "transformer")


def load_pipeline(folder: str | os.PathLike[str], dtype: torch.dtype) -> Any:
    """The diffusers pipeline of a folder or a hub id; raises what from_pretrained does, ValueError for an index that
    is none.

    Parts that a folder says are missing (Stable Diffusion 3 without its third text encoder) stay so: diffusers itself
    asks for them.
    """
    from diffusers import DiffusionPipeline

    index = Path(folder, "model_index.json")
    parts = json.loads(index.read_text()) if index.is_file() else {}
    if not isinstance(parts, dict):
        raise ValueError(f"{index} holds no JSON object")
    missing = {name: None for name, what in parts.items() if what == [None, None]}
    return DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, **missing)


class DistributedDenoiser(nn.Module):
    """Stands for the denoiser in a pipeline: same call, config, dtype, device and attributes; the engine computes."""

    def __init__(self, denoiser: nn.Module, engine: Engine) -> None:
        super().__init__()
        # not as submodules: this module owns no parameters, and a pipeline that moves it moves nothing
        self.__dict__["_denoiser"] = denoiser
        self.__dict__["_engine"] = engine
        self.__dict__["_output_class"] = _output_class(denoiser)
        self.eval()

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self._denoiser.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        device: torch.device = self._denoiser.device
        return device

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_denoiser"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The denoiser's own signature; return_dict as there."""
        output = self._engine(*args, **kwargs)
        by_name = bind_arguments(self._denoiser, args, kwargs).get("return_dict", True)
        return self._output_class(*output) if by_name and self._output_class is not None else output

    @contextmanager
    def cache_context(self, name: str, **_details: Any) -> Iterator[None]:
        """diffusers' cache contexts: calls under different names keep lagged values apart."""
        self._engine.in_context(name)
        try:
            yield
        finally:
            self._engine.in_context("")


@contextmanager
def parallelize(
    pipe: Any,
    plan: Plan | str | os.PathLike[str] | None = None,
    options: EngineOptions | None = None,
    *,
    devices: Sequence[str] | int | None = None,
    sizes: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Iterator[Engine]:
    """Inside the block the pipeline's denoiser runs by the plan; leaving it puts the denoiser back and ends the ranks.

    pipe: a diffusers pipeline with a ``unet`` or ``transformer``. plan: a Plan, a plan file, or None to make one now
    for ``devices``. devices: one per rank, such as ["cuda:0", "cuda:1"], or how many (default: as many as the plan
    has, on cpu, or the cuda devices in order where the pipeline is on one). sizes: what a plan is made for, as keyword
    arguments of ``partitioner.models.model_spec``: height, width, frames, batch, guidance.
    overrides: fields of EngineOptions, such as exact=True.
    Raises PlanMismatch, PlanError, StartupError before the pipeline is touched.
    """
    options = replace(options or EngineOptions(), **overrides)
    if options.transport == "processes":
        join(options.startup_timeout_s)
    name = denoiser_name(pipe)
    denoiser = getattr(pipe, name)
    if plan is None:
        loaded = plan_for(pipe, devices, sizes or {})
    else:
        loaded = plan if isinstance(plan, Plan) else Plan.load(plan)
    if devices is None or isinstance(devices, int):
        devices = default_devices(denoiser, loaded.ranks)
    if any(device.startswith("cuda") for device in devices) and "transport" not in overrides:
        if launched():
            raise InputError(
                "under torchrun every rank is a process, and ranks on GPUs are threads of one; leave torchrun out for "
                'the GPUs of one machine, or keep the pipeline on cpu, or ask for transport="processes"'
            )
        options = replace(options, transport="threads")
    with Engine(
        denoiser, loaded, options, devices=devices, scheduler=lambda: getattr(pipe, "scheduler", None)
    ) as engine:
        setattr(pipe, name, DistributedDenoiser(denoiser, engine))
        try:
            yield engine
        finally:
            setattr(pipe, name, denoiser)


def plan_for(pipe: Any, devices: Sequence[str] | int | None, sizes: Mapping[str, Any]) -> Plan:
    """A plan for a pipeline in memory: costs measured on the denoiser's GPU, or a roofline where it has none."""
    from partitioner.costs.model import choose_cost_model
    from partitioner.fleet import parse_fleet
    from partitioner.models.spec import live_spec
    from partitioner.planning.expected_quality import QualityAdvisor, SamplingSetup
    from partitioner.planning.options import Options
    from partitioner.planning.planner import plan_model
    from profiles.device_sheets import device_spec
    from profiles.quality_profile import QualityProfile

    if devices is None:
        raise InputError("without a plan, say for how many devices to make one: parallelize(pipe, devices=2)")
    denoiser = getattr(pipe, denoiser_name(pipe))
    count = str(devices if isinstance(devices, int) else len(devices))
    live = str(denoiser.device)
    cost_model = choose_cost_model(None if live == "cpu" else live, "cpu" if live == "cpu" else None, count)
    spec = live_spec(denoiser, pipe, **sizes)
    sampling = SamplingSetup(scheduler=type(pipe.scheduler).__name__ if hasattr(pipe, "scheduler") else None)
    advisor = QualityAdvisor(QualityProfile.load(), sampling)
    options = Options(driver_ms=device_spec(cost_model.reference).driver_ms)
    return plan_model(spec, parse_fleet(count, cost_model.reference), cost_model, options, advisor=advisor).plan


def denoiser_name(pipe: Any) -> str:
    """The attribute that holds a pipeline's denoiser; InputError where it has none, or two."""
    names = [name for name in DENOISER_NAMES if isinstance(getattr(pipe, name, None), nn.Module)]
    if len(names) != 1:
        found = " and ".join(names) or "neither"
        raise InputError(
            f"a {type(pipe).__name__} has {found}; expected a diffusers pipeline with one denoiser, as "
            f"{' or '.join(DENOISER_NAMES)}"
        )
    if isinstance(getattr(pipe, names[0]), DistributedDenoiser):
        raise InputError("this pipeline is already inside a parallelize block; leave it first")
    return names[0]


def default_devices(denoiser: nn.Module, ranks: int) -> list[str]:
    """One device per rank: the cuda devices, if the denoiser is on one, else cpu; PlanMismatch if too few."""
    first = next(denoiser.parameters()).device
    if first.type != "cuda":
        return [first.type] * ranks
    count = torch.cuda.device_count()
    if count < ranks:
        raise PlanMismatch(
            f"the plan needs {ranks} devices, this machine has {count} cuda devices; make a plan with --devices "
            f"{count}, or name one device several times with devices=[...]"
        )
    return [f"cuda:{(first.index + rank) % count}" for rank in range(ranks)]


def _output_class(denoiser: nn.Module) -> type | None:
    """The output class that the denoiser's forward names as its return type, or None."""
    try:
        hint = typing.get_type_hints(type(denoiser).forward).get("return")
    except (NameError, TypeError):
        return None
    choices = typing.get_args(hint) or (hint,)
    return next((c for c in choices if isinstance(c, type) and hasattr(c, "__dataclass_fields__")), None)
