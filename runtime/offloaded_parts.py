"""offloaded_parts: text encoders and autoencoders are on the GPU only while they are used, each alone, beside rank 0.

diffusers' own enable_model_cpu_offload moves the denoiser as well, whole. So its parts are the pipeline's own order of
offloading without the denoisers, with hooks of accelerate's as there: a part's call, or an autoencoder's encode or
decode (diffusers' apply_forward_hook), brings it to the GPU and all others to the CPU, where a denoiser's call brings
them, too. What is in no such order, a ControlNet say, is called at every step and stays on the GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from accelerate.utils import send_to_device
from torch import nn

from partitioner.plan.plan import Plan
from runtime.devices.places import with_index
from runtime.errors import InputError, PlanMismatch
from runtime.parts import room_beside, size_bytes


class _Alone(ModelHook):  # type: ignore[misc] # accelerate has no types
    """Of parts that take turns on a device, brings the one that is called there and the others to the CPU."""

    def __init__(self, parts: Sequence[nn.Module], device: torch.device) -> None:
        self.execution_device = device  # by which diffusers knows where the pipeline computes
        self._parts = parts

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self.offload(module)
        module.to(self.execution_device)
        return send_to_device(args, self.execution_device), send_to_device(kwargs, self.execution_device)

    def offload(self, used: nn.Module | None = None) -> None:
        """Bring all parts but the one that is used to the CPU."""
        for part in self._parts:
            if part is not used and _device_of(part).type != "cpu":
                part.to("cpu")


def check_not_offloaded(pipe: Any) -> None:
    """InputError where the pipeline is offloaded as a whole, the denoiser with it."""
    if getattr(pipe, "_all_hooks", None):
        raise InputError(
            f"enable_model_cpu_offload of this {type(pipe).__name__} moves the denoiser whole, of which every rank has "
            "its share: take it back with pipe.remove_all_hooks(), and call parallelize(pipe, ..., offload=True), "
            "which offloads all other parts"
        )


@contextmanager
def offloaded_parts(pipe: Any, plans: Mapping[str, Plan], devices: Sequence[str]) -> Iterator[None]:
    """Have the parts of a pipeline that are no denoisers take turns on rank 0's GPU inside the block.

    Args:
        pipe: a diffusers pipeline; afterwards its parts are where they were.
        plans: by name in the pipeline, of the denoisers that ranks are to run.
        devices: rank -> device.

    Raises:
        InputError: rank 0 is on no GPU, or the pipeline has no order of offloading, or a part has one of its own.
        PlanMismatch: a part has no room there, even alone.
    """
    home = torch.device(with_index(devices[0]))
    order = getattr(pipe, "model_cpu_offload_seq", None)
    if home.type == "cpu":
        raise InputError(
            "offload brings parts of the pipeline to the GPU of rank 0 and back, and rank 0 is on the cpu: name GPUs "
            "as devices, or leave offload out"
        )
    if order is None:
        raise InputError(f"a {type(pipe).__name__} does not say which of its parts can be offloaded: leave offload out")
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    for name, part in modules.items():
        if any(map(_is_moved_about, part.modules())):
            raise InputError(
                f"{name} has hooks that bring it to devices (device_map, or offloading of its own), which offload "
                "would replace: take them back, or leave offload out"
            )
    denoisers = [modules.pop(name) for name in plans]
    taking_turns = {name: modules.pop(name) for name in order.split("->") if name in modules}
    before = [(part, _device_of(part)) for part in (*taking_turns.values(), *modules.values())]
    alone = _Alone(list(taking_turns.values()), home)
    with ExitStack() as stack:
        for part, device in before:
            stack.callback(part.to, device)
        for part in taking_turns.values():
            part.to("cpu")
        for part in modules.values():
            part.to(home)
        _check_room(taking_turns, plans, devices, denoisers)
        for part in taking_turns.values():
            stack.callback(_unhooked, part, "forward" in vars(part))
            add_hook_to_module(part, alone)
        for denoiser in denoisers:
            stack.callback(denoiser.register_forward_pre_hook(lambda *_: alone.offload()).remove)
            stack.callback(delattr, denoiser, "_hf_hook")
            denoiser._hf_hook = alone  # it says where the pipeline computes, and does nothing
        yield


def _is_moved_about(module: nn.Module) -> bool:
    """Whether a hook of accelerate's, or diffusers' group offloading, brings a module to devices."""
    registry = getattr(module, "_diffusers_hook", None)
    return hasattr(module, "_hf_hook") or (registry is not None and registry.get_hook("group_offloading") is not None)


def _device_of(part: nn.Module) -> torch.device:
    return next((tensor.device for tensor in (*part.parameters(), *part.buffers())), torch.device("cpu"))


def _check_room(
    parts: Mapping[str, nn.Module], plans: Mapping[str, Plan], devices: Sequence[str], denoisers: Sequence[nn.Module]
) -> None:
    room = room_beside(list(plans.values()), devices, [str(_device_of(denoiser)) for denoiser in denoisers])
    for name, part in parts.items():
        if room is not None and size_bytes(part) > room:
            raise PlanMismatch(
                f"{name} has {size_bytes(part) / 1e9:.1f} GB, and beside rank 0's share {devices[0]} has room for "
                f"{max(room, 0) / 1e9:.1f} GB by the plan: leave it on the CPU, without offload, or use more devices"
            )


def _unhooked(part: nn.Module, keep_forward: bool) -> None:
    remove_hook_from_module(part)
    if not keep_forward:
        vars(part).pop("forward", None)  # the class's own is there again
