"""digest: what tells a tensor's content from any other, in about the time that it takes to read it twice."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from partitioner.graph.torch_private.fakes import FakeTensor

_SMALL = 1 << 14  # bytes, up to which all of them are hashed: torch's calls take longer
_ROW = 1024  # words of a row of those that are summed


def digest(tensor: torch.Tensor) -> str | None:
    """Equal for tensors of one dtype, shape and layout with the same bits; None where its memory cannot be read.

    What is another by chance, as after a step of training, has the same digest once in 2**64 cases. It is no defence
    against who looks for such a content.

    >>> one, other = torch.ones(3), torch.tensor([1.0, 1.0, 2.0])
    >>> digest(one) == digest(torch.ones(3)), digest(one) == digest(other)
    (True, False)
    """
    return digests([tensor])[0]


def digests(tensors: Sequence[torch.Tensor]) -> list[str | None]:
    """``digest`` of each; those on a GPU are waited for together."""
    with torch.no_grad():
        read = {index: _condensed(tensor) for index, tensor in enumerate(tensors) if _is_readable(tensor)}
        for device in {data.device for data in read.values()} - {torch.device("cpu")}:
            there = {index: data for index, data in read.items() if data.device == device}
            together = torch.cat(list(there.values())).cpu()
            read |= zip(there, torch.split_with_sizes(together, [len(data) for data in there.values()]), strict=True)
    found: list[str | None] = [None] * len(tensors)
    for index, data in read.items():
        tensor = tensors[index]
        made = hashlib.sha256(f"{tensor.dtype}{list(tensor.shape)}".encode())
        made.update(data.numpy().data)
        found[index] = made.hexdigest()
    return found


def _is_readable(tensor: torch.Tensor) -> bool:
    """Whether a tensor has memory that can be read: it is no wrapper of other tensors, and no fake one."""
    wraps = isinstance(tensor, FakeTensor) or hasattr(tensor, "__tensor_flatten__")
    return not wraps and not tensor.is_meta and tensor.layout is torch.strided


def _condensed(tensor: torch.Tensor) -> torch.Tensor:
    """[bytes]: what its memory holds, from its first element to its last, or sums of that, on its device."""
    if tensor.numel() == 0:
        return torch.empty(0, dtype=torch.uint8, device=tensor.device)
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    data = torch.as_strided(tensor.detach(), (span,), (1,)).view(torch.uint8)
    if len(data) <= _SMALL:
        return data
    if data.device.type == "cpu":
        data = torch.from_numpy(data.numpy())  # whose offset in its storage is 0, as views of words need it
    elif data.storage_offset() % 8:
        data = data.clone()
    words = data[: len(data) // 8 * 8].view(torch.int64)
    rows = words[: len(words) // _ROW * _ROW].view(-1, _ROW)
    # every word counts in two sums, so that words that have changed places are seen as well
    parts = (rows.sum(0), rows.sum(1), words[rows.numel() :], data[words.nbytes :])
    return torch.cat([part.view(torch.uint8) for part in parts])
