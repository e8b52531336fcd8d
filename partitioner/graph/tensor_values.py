"""TensorValues: notices that tensors hold other values than before, without keeping copies of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter

import torch

from partitioner.graph.tensor_digest import digests

_version = attrgetter("_version")


class TensorValues:
    """What some tensors held when this was made.

    A write through torch raises a tensor's version, and ``tensor.data = other`` moves its memory: ``changed`` sees
    these, and is fast. A write through ``tensor.data`` does neither, nor does one through numpy or by a fused
    optimizer: for such writes ``which`` reads the tensors.

    >>> weight = torch.nn.Parameter(torch.ones(4))
    >>> values = TensorValues([weight])
    >>> same = weight.data[1].mul_(2)
    >>> values.changed(), values.which() == [weight]
    (False, True)
    """

    def __init__(self, tensors: Sequence[torch.Tensor], marks: Callable[[], Mapping[int, object]] = dict) -> None:
        """Take them as they are.

        Args:
            tensors: each once; kept, not copied.
            marks: gives, by id, what is another after any write to a tensor, for those that need not be read.
        """
        self.tensors = list(tensors)
        self._versioned = [tensor for tensor in self.tensors if not tensor.is_inference()]
        self._placed = [tensor for tensor in self.tensors if tensor.layout is torch.strided]
        self._marks = marks
        self._digests: dict[int, str | None] = {}
        self.settle(self.tensors)

    def changed(self) -> bool:
        """Whether a tensor was written to through torch, or moved."""
        return self.written() or self.moved()

    def written(self) -> bool:
        """Whether a tensor was written to through torch."""
        return self._versions() != self._taken[0]

    def moved(self) -> bool:
        """Whether a tensor lies elsewhere."""
        return self._places() != self._taken[1]

    def which(self) -> list[torch.Tensor]:
        """The tensors that were written to or moved, or that hold anything else."""
        versions, places = self._versions(), self._places()
        found = {id(t) for t, now, old in zip(self._versioned, versions, self._taken[0], strict=True) if now != old}
        found |= {id(t) for t, now, old in zip(self._placed, places, self._taken[1], strict=True) if now != old}
        marks = self._marks()
        unread = marks.keys() & self._taken_marks.keys()
        found |= {marked for marked in unread if marks[marked] != self._taken_marks[marked]}
        read = [tensor for tensor in self.tensors if id(tensor) not in found | unread]
        found |= {id(t) for t, now in zip(read, digests(read), strict=True) if now != self._digests[id(t)]}
        return [tensor for tensor in self.tensors if id(tensor) in found]

    def settle(self, written: Sequence[torch.Tensor] = ()) -> None:
        """Take the memory that tensors lie in as it is: an engine itself has moved some, which hold what they held.

        written: those that are also to be taken with what they hold now.
        """
        self._digests |= zip(map(id, written), digests(written), strict=True)
        self._taken = self._versions(), self._places()
        self._taken_marks = self._marks()

    def _versions(self) -> list[int]:
        return list(map(_version, self._versioned))  # inference tensors have none

    def _places(self) -> list[int]:
        # sparse tensors, and wrappers of other tensors, have no address
        return list(map(torch.Tensor.data_ptr, self._placed))
