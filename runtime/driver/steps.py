"""Steps: which streams a generation calls at a step, and of what a stream's next call can be foreseen.

A step is all calls of one timestep. At the first of them the others can be foreseen if at the step before each was like
the first call of that step, or like its own call before: every input by itself, conditions apart, which are the
stream's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from partitioner.graph.ir import Role
from runtime.driver.call_arguments import Tensors
from runtime.driver.denoiser_call import DenoiserCall
from runtime.driver.readback import Readback, is_late
from runtime.driver.stream import Stream

MOST = 16  # streams of a step; what calls more is no step

Source = Literal["first", "own"]  # the same input of the step's first call, or of the stream's own call before


class SameBits:
    """Whether two tensors are bit for bit the same; on a GPU that is looked at later, so as not to wait for it now."""

    def __init__(self, one: torch.Tensor, other: torch.Tensor) -> None:
        self._known: bool | None = None
        self._late: Readback | None = None
        alike = one.shape == other.shape and one.dtype == other.dtype and one.stride() == other.stride()
        if one is other or not alike:
            self._known = alike
        elif is_late(one) or is_late(other):
            self._late = Readback((as_bits(one) == as_bits(other)).all())
        else:
            self._known = torch.equal(as_bits(one), as_bits(other))

    def __bool__(self) -> bool:
        if self._known is None:
            assert self._late is not None
            self._known = bool(self._late.values())
        return self._known


def as_bits(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as integers, so that NaN equals itself and 0 is not -0."""
    dense = tensor if tensor.is_contiguous() else tensor.contiguous()
    return dense.view(torch.uint8) if dense.dim() else dense.reshape(1).view(torch.uint8)


@dataclass(frozen=True)
class _Made:
    """A call of the present step or the one before. like: by path of an input, what it was the same as."""

    call: DenoiserCall
    versions: dict[str, int]
    like: dict[str, dict[Source, SameBits]]

    def was_written(self, path: str) -> bool:
        """Whether an input has been written to since, as far as it tells."""
        return versions_of({path: self.call.tensors[path]}).get(path) != self.versions.get(path)


class Steps:
    """The present step of a generation and the one before.

    Attributes:
        hit: whether a call of the present step was made as foreseen.
        missed: whether one was made otherwise.
        misses: how many steps in a row, of those that had foreseen calls, had one that was not made as foreseen.
        gave_up: whether no call is foreseen any more.
    """

    def __init__(self) -> None:
        self.hit = False
        self.missed = False
        self.misses = 0
        self.gave_up = False
        self._now: dict[Stream, _Made] = {}
        self._before: dict[Stream, _Made] = {}

    @property
    def streams(self) -> Iterable[Stream]:
        """That were called at the present step or the one before."""
        return {**self._before, **self._now}

    def begins(self, call: DenoiserCall, stream: Stream | None) -> bool:
        """Whether a call begins a step: its timestep is new, or its stream was called at this step already."""
        last = next(reversed(self._now.values()), None)
        return last is None or last.call.timestep != call.timestep or stream in self._now or len(self._now) >= MOST

    def take(self, call: DenoiserCall, stream: Stream) -> None:
        """Take a call."""
        if self.begins(call, stream):
            self._before, self._now = self._now, {}
        first, own = next(iter(self._now.values()), None), self._before.get(stream)
        like: dict[str, dict[Source, SameBits]] = {}
        for path in stepwise_inputs(call):
            candidates: dict[Source, _Made | None] = {"first": first, "own": own}
            like[path] = {
                source: SameBits(call.tensors[path], made.call.tensors[path])
                for source, made in candidates.items()
                if made is not None and path in made.call.tensors and not made.was_written(path)
            }
        self._now[stream] = _Made(call, versions_of(call.tensors), like)

    @property
    def has_begun(self) -> bool:
        """Whether the last call that was taken is the first of its step."""
        return len(self._now) == 1

    def expected(self, first: Stream) -> list[Stream]:
        """The streams that are to be called at the present step, which this one's call has begun, too."""
        return [stream for stream in self._before if stream is not first]

    def next_call(self, stream: Stream, first: Stream) -> DenoiserCall | None:
        """A stream's call at the present step; None where it cannot be foreseen.

        Args:
            stream: that was called at the step before.
            first: that the present step's first call belongs to, the only one so far.
        """
        made, now = self._before[stream], self._now[first].call
        stepwise = stepwise_inputs(made.call)
        inputs = dict(made.call.tensors)
        for path, tensor in inputs.items():
            if (
                path in stepwise
                and path in now.tensors
                and self._was_like_first(stream, path)
                and self._was_like_first(first, path)
            ):
                tensor = now.tensors[path]
            elif made.was_written(path) or (path in stepwise and not made.like[path].get("own")):
                return None
            # an inference tensor does not tell whether it is written to: a copy is what it was
            inputs[path] = tensor.clone() if tensor.is_inference() else tensor
        return replace(made.call, caller=now.caller, tensors=inputs, number=now.number)

    def _was_like_first(self, stream: Stream, path: str) -> bool:
        """Whether an input of a stream's call at the step before was the same as that of the step's first call."""
        made = self._before.get(stream)
        if made is None or path not in made.call.tensors:
            return False
        return stream is next(iter(self._before)) or bool(made.like.get(path, {}).get("first"))


def stepwise_inputs(call: DenoiserCall) -> dict[str, Role]:
    """The inputs of a call that may be others at the next step, with their roles."""
    return {item.name: item.role for item in call.graph.inputs if item.role > Role.PROMPT}


def versions_of(tensors: Tensors) -> dict[str, int]:
    """How often each tensor was written to, by path; inference tensors do not tell."""
    return {path: tensor._version for path, tensor in tensors.items() if not tensor.is_inference()}
