"""movable: which of a denoiser's tensors an engine may give other memory, because nobody else has a part of theirs."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterable, Mapping

import torch

from partitioner.graph.torch_private.memory import storage_is_shared


def movable(tensors: Iterable[torch.Tensor], others: Collection[torch.Tensor] = ()) -> set[int]:
    """Ids of those plain tensors on the cpu of whose memory nothing else has a part.

    Who has a part of it, be it another tensor of the denoiser, what ``state_dict()`` gave, a numpy array, the flat
    buffer of an optimizer or another process, writes to the tensor through it, and would do so no longer.

    Args:
        tensors: Which are asked about.
        others: All of the denoiser's.

    >>> one, other = torch.ones(2), torch.ones(2)
    >>> kept = other.detach()
    >>> movable([one, other]) == {id(one)}
    True
    """
    plain = {id(tensor): tensor for tensor in tensors if is_plain(tensor)}
    overlapping = _overlapping({**plain, **{id(tensor): tensor for tensor in others if is_plain(tensor)}})
    found = {number: tensor for number, tensor in plain.items() if number not in overlapping}
    return found.keys() - {id(tensor) for tensor in held_elsewhere(found.values())}


def held_elsewhere(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Those of the tensors of whose memory something else has a part, be it another of them; on any device."""
    found = [tensor for tensor in tensors if storage_is_shared(tensor)]
    if found:
        gc.collect()  # diffusers' loader leaves some in cycles, with low_cpu_mem_usage=False
    return [tensor for tensor in found if storage_is_shared(tensor)]


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether it lies in ordinary memory of this process, in no parts, and can be given other memory."""
    if type(tensor.data) is not torch.Tensor or tensor.is_inference():
        return False
    return tensor.device.type == "cpu" and tensor.layout is torch.strided


def _overlapping(tensors: Mapping[int, torch.Tensor]) -> set[int]:
    """Ids of those whose memory another of them has a part of. tensors: by id."""
    found: set[int] = set()
    end, last = 0, 0
    for tensor in sorted(tensors.values(), key=torch.Tensor.data_ptr):
        if tensor.nbytes and tensor.data_ptr() < end:
            found |= {id(tensor), last}
        if tensor.data_ptr() + tensor.nbytes > end:
            end, last = tensor.data_ptr() + tensor.nbytes, id(tensor)
    return found
