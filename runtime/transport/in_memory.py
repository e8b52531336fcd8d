"""check_in_memory: a denoiser must have its parameters and buffers before ranks are given any."""

from __future__ import annotations

from torch import nn

from runtime.errors import PlanMismatch


def check_in_memory(denoiser: nn.Module) -> None:
    """Check that a denoiser has its parameters and buffers.

    Raises:
        PlanMismatch: some of them have no memory, as after sequential CPU offload, or where its files lack them.
    """
    tensors = dict((*denoiser.named_parameters(), *denoiser.named_buffers()))
    absent = [path for path, tensor in tensors.items() if tensor.is_meta]
    kind = type(denoiser).__name__
    if absent and any(hasattr(module, "_hf_hook") for module in denoiser.modules()):
        raise PlanMismatch(
            f"{absent[0]} of this {kind} is not in memory (its device is meta), as after "
            "enable_sequential_cpu_offload: load the pipeline without it; each rank holds its own part only"
        )
    if absent:
        more = f" and {len(absent) - 1} more of its {len(tensors)} tensors" if len(absent) > 1 else ""
        folder = getattr(getattr(denoiser, "config", None), "_name_or_path", None)
        raise PlanMismatch(
            f"{absent[0]}{more} of this {kind} {'have' if more else 'has'} no values (the device is meta): it was "
            f"moved there, or the files that it was loaded from{f', in {folder},' if folder else ''} hold no tensor of "
            "that name; load it again, from the whole of the files, with the configuration that belongs to them"
        )
