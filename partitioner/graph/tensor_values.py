"""TensorValues: notices that tensors hold other values than before, without keeping copies of them."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import torch

from partitioner.graph.torch_private import FakeTensor

_SAMPLED = 16  # elements of each tensor, spread evenly from the first to the last


class TensorValues:
    """What some tensors held when this was made.

    A write through torch raises a tensor's version, and ``tensor.data = other`` moves its memory: ``changed`` sees
    these, and is fast. A write through ``tensor.data`` does neither; for such writes ``which`` compares some elements.

    >>> weight = torch.nn.Parameter(torch.ones(4))
    >>> values = TensorValues([weight])
    >>> same = weight.data.mul_(2)
    >>> values.changed(), values.which() == [weight]
    (False, True)
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        """Take them as they are. tensors: each once; kept, not copied."""
        self.tensors = list(tensors)
        self._versioned = [tensor for tensor in self.tensors if not tensor.is_inference()]
        self._marks = self._marks_now()
        # by what can be compared at once: type, device and number of elements
        self._groups: dict[tuple[torch.dtype, torch.device, int], list[torch.Tensor]] = {}
        for tensor in self.tensors:
            if _is_plain(tensor):
                key = (tensor.dtype, tensor.device, min(_SAMPLED, _span(tensor)))
                self._groups.setdefault(key, []).append(tensor)
        self._samples = {key: _samples(group, key[-1]) for key, group in self._groups.items()}

    def changed(self) -> bool:
        """Whether a tensor was written to through torch, or moved."""
        return self._marks_now() != self._marks

    def which(self) -> list[torch.Tensor]:
        """The tensors that were written to or moved, or some elements of which are others."""
        versions, pointers = self._marks_now()
        found = {id(t) for t, now, old in zip(self._versioned, versions, self._marks[0], strict=True) if now != old}
        found |= {id(t) for t, now, old in zip(self.tensors, pointers, self._marks[1], strict=True) if now != old}
        for key, group in self._groups.items():
            still = [(tensor, row) for row, tensor in enumerate(group) if _still(tensor, key)]
            found |= {id(tensor) for tensor in group} - {id(tensor) for tensor, _ in still}
            if still:
                now = _samples([tensor for tensor, _ in still], key[-1])
                others = (now != self._samples[key][[row for _, row in still]]).any(1).tolist()
                found |= {id(tensor) for (tensor, _), other in zip(still, others, strict=True) if other}
        return [tensor for tensor in self.tensors if id(tensor) in found]

    def _marks_now(self) -> tuple[list[int], list[int]]:
        # inference tensors have no versions; wrappers of other tensors have no address
        return list(map(_version, self._versioned)), list(map(torch.Tensor.data_ptr, self.tensors))


def checksum(tensor: torch.Tensor) -> int | None:
    """A number that is another where any element of a tensor is another; None where its memory cannot be read."""
    if not _is_plain(tensor):
        return None
    with torch.no_grad():
        flat = torch.as_strided(tensor.detach(), (_span(tensor),), (1,))
        return int(flat.view(_WHOLE[flat.element_size()]).sum(dtype=torch.int64))


_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}
_version = attrgetter("_version")


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether its memory can be read: no wrapper of other tensors, which are looked at themselves, no fake one."""
    wraps = isinstance(tensor, FakeTensor) or hasattr(tensor, "__tensor_flatten__")
    return not wraps and not tensor.is_meta and tensor.layout is torch.strided and tensor.numel() > 0


def _still(tensor: torch.Tensor, key: tuple[torch.dtype, torch.device, int]) -> bool:
    return _is_plain(tensor) and key == (tensor.dtype, tensor.device, min(_SAMPLED, _span(tensor)))


def _span(tensor: torch.Tensor) -> int:
    """How many elements its memory spans from its first to its last."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _samples(tensors: Sequence[torch.Tensor], count: int) -> torch.Tensor:
    """[tensors, bytes]: ``count`` elements of each as bytes, so that NaN equals itself."""
    with torch.no_grad():
        rows = []
        for tensor in tensors:
            step = (_span(tensor) - 1) // max(count - 1, 1)
            rows.append(torch.as_strided(tensor.detach(), (count,), (step,), tensor.storage_offset()))
        return torch.stack(rows).view(torch.uint8)
