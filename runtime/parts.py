"""place_parts: puts the parts of a pipeline where there is memory for them, before its ranks start on GPUs.

A rank takes its own share of a denoiser from wherever the denoiser is. So the denoisers stay on the CPU, mapped from
their files as they were loaded, unless all ranks are on one GPU, which then holds each once. The other parts, such as
text encoders and the VAE, go to the driver's GPU beside rank 0's share, the VAE first and then the smallest; those that
find no room stay on the CPU, and compute there. Where that is the VAE, all of them do.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from partitioner.plan.plan import Plan
from runtime.devices.places import local_places, needed_bytes, with_index

logger = logging.getLogger("runtime")


def place_parts(pipe: Any, plans: Mapping[str, Plan], devices: Sequence[str], *, offload: bool = False) -> None:
    """Put the parts of a pipeline on devices; it is loaded on the CPU.

    Args:
        pipe: a diffusers pipeline.
        plans: by name in the pipeline, of the denoisers that ranks are to run.
        devices: rank -> device; the pipeline's own calls are made on the first.
        offload: leave the other parts where they are, for runtime.offloaded_parts.
    """
    home = with_index(devices[0])
    if torch.device(home).type != "cuda":
        pipe.to(home)
        return
    together = all(with_index(device) == home for device in devices)
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    denoisers = {name: parts.pop(name) for name in plans}
    if together:
        for denoiser in denoisers.values():
            denoiser.to(home)
    if offload:
        return
    left = room_beside(list(plans.values()), devices, [home if together else "cpu"] * len(plans))
    stay: dict[str, nn.Module] = {}
    for name, part in sorted(parts.items(), key=lambda item: (not _decodes(item[1]), size_bytes(item[1]))):
        if left is not None and size_bytes(part) > left:
            stay[name] = part
            continue
        part.to(home)
        left = None if left is None else left - size_bytes(part)
    called_elsewhere = torch.device(pipe.device) != torch.device(home)  # as where no part has found room
    if called_elsewhere or any(map(_decodes, stay.values())):
        for name, part in parts.items():
            stay[name] = part.to("cpu")
    else:
        for part in stay.values():
            _compute_where_it_is(part, home)
    for name, part in stay.items():
        logger.warning(
            "%s (%.1f GB) stays on the CPU and computes there: beside rank 0's share, %s has no room for it",
            name, size_bytes(part) / 1e9, home,
        )  # fmt: skip


def room_beside(plans: Sequence[Plan], devices: Sequence[str], held_on: Sequence[str]) -> int | None:
    """How much memory the driver's device has left, by the plans, with its ranks on it; None where that is unknown.

    Args:
        plans: by denoiser.
        devices: rank -> device.
        held_on: by denoiser, the device that holds its parameters already.
    """
    places = local_places(devices)
    threads = len(set(places)) < len(places)  # which parallelize chooses where ranks share a GPU
    needed = needed_bytes(plans, places, held_on=held_on, one_process=threads, graphs=True)
    free = places[0].free_bytes
    return None if free is None else free - needed[places[0]]


def size_bytes(part: nn.Module) -> int:
    """How much memory the parameters and buffers of a part of a pipeline take."""
    return sum(tensor.nbytes for tensor in (*part.parameters(), *part.buffers()))


def _decodes(part: nn.Module) -> bool:
    """Whether it is an autoencoder: a pipeline calls its decode, so that its inputs cannot be brought to it."""
    return hasattr(part, "decode")


def _compute_where_it_is(part: nn.Module, home: str) -> None:
    """Have a part's calls take inputs from any device, and give their outputs on ``home``."""
    own = next((tensor.device for tensor in part.parameters()), torch.device("cpu"))

    def bring(_part: nn.Module, args: Any, kwargs: Any) -> Any:
        return _moved(args, own), _moved(kwargs, own)

    part.register_forward_pre_hook(bring, with_kwargs=True)
    part.register_forward_hook(lambda _part, _args, output: _moved(output, torch.device(home)))


def _moved(value: Any, device: torch.device) -> Any:
    """The value with its tensors on a device, also those in lists, tuples and mappings."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, Mapping):  # transformers' outputs are mappings whose class takes their items by name
        return type(value)(**{name: _moved(item, device) for name, item in value.items()})
    if isinstance(value, (list, tuple)):
        moved = [_moved(item, device) for item in value]
        return type(value)(*moved) if hasattr(value, "_fields") else type(value)(moved)
    return value
