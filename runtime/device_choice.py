"""Where ranks are, unless it was said: on the pipeline's device and those beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from partitioner.plan.plan import Plan
from runtime.devices.places import with_index
from runtime.errors import PlanMismatch
from runtime.options import EngineOptions
from runtime.torchrun import launched


def choose_places(
    denoiser: nn.Module,
    plan: Plan,
    devices: Sequence[str] | int | None,
    options: EngineOptions,
    *,
    transport_is_given: bool,
) -> tuple[Sequence[str], EngineOptions]:
    """The device of each rank, and the options with the transport that ranks on such devices need.

    Raises:
        PlanMismatch: this machine has too few GPUs.
    """
    if devices is None or isinstance(devices, int):
        devices = default_devices(denoiser, plan.ranks)
    if any(device.startswith("cuda") for device in devices) and not transport_is_given:
        # of torchrun's ranks, a name may stand for GPUs of several machines
        shared = not launched() and len({with_index(device) for device in devices}) < len(devices)
        # processes take turns on a GPU that they share, threads do not
        options = replace(options, transport="threads" if shared or options.green_contexts else "processes")
    return devices, options


def default_devices(denoiser: nn.Module, ranks: int) -> list[str]:
    """One device per rank: the cuda devices in order, beginning with the denoiser's if it is on one, else its own.

    Under torchrun each rank has the GPU of its LOCAL_RANK, on its machine; "cuda" stands for it.

    Raises:
        PlanMismatch: this machine has fewer cuda devices than there are ranks; or, under torchrun, the denoiser is on
            another one than rank 0's.
    """
    first = next(denoiser.parameters()).device
    if first.type != "cuda":
        return [first.type] * ranks
    if launched():
        own = int(os.environ.get("LOCAL_RANK", "0"))
        if first.index != own:
            raise PlanMismatch(
                f"the pipeline is on {first}, and under torchrun this process, rank 0, has cuda:{own} (LOCAL_RANK); "
                f'move the pipeline there with pipe.to("cuda:{own}"), or name the devices'
            )
        return ["cuda"] * ranks
    count = torch.cuda.device_count()
    if count < ranks:
        raise PlanMismatch(
            f"the plan needs {ranks} devices, this machine has {count} cuda devices; make a plan with --devices "
            f"{count}, or name one device several times with devices=[...]"
        )
    return [f"cuda:{(first.index + rank) % count}" for rank in range(ranks)]
