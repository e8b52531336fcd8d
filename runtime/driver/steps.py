"""Steps: which streams a generation calls at a step, and of what a stream's next call can be foreseen.

A step is all calls of one timestep. At the first of them the others can be foreseen if at the step before each was like
the first call of that step: every input by itself, conditions apart, which are the stream's own. An input is like the
first call's if it is the same, or the same rows fewer or more times: a call may hold both halves of guidance, and the
next one a single row. Inputs beside latent and timestep may also stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from partitioner.graph.nodes import Role
from runtime.driver.call_arguments import Tensors, layout_of
from runtime.driver.denoiser_call import DenoiserCall
from runtime.driver.prompt_inputs import version_of
from runtime.driver.readback import Readback, is_late
from runtime.driver.stream import Stream

MOST = 16  # streams of a step; what calls more is no step
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
NEW_STREAM = "their conditions were others than those of the calls before"


class SameBits:
    """Whether two tensors are bit for bit the same; on a GPU that is looked at later, so as not to wait for it now."""

    def __init__(self, one: torch.Tensor, other: torch.Tensor) -> None:
        self._known: bool | None = None
        self._late: Readback | None = None
        if one is other or layout_of(one) != layout_of(other):
            self._known = one is other
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
    if tensor.dtype is torch.complex128:
        tensor = torch.view_as_real(tensor)
    return tensor.view(_INTEGERS[tensor.element_size()])


@dataclass(frozen=True)
class _Made:
    """A call of the present step or the one before.

    versions: of its inputs. like: by path, whether an input was like the step's first call's. kept: whether it was as
    at the step before.
    """

    call: DenoiserCall
    versions: Mapping[str, int]
    like: Mapping[str, SameBits]
    kept: Mapping[str, SameBits]

    def was_written(self, path: str) -> bool:
        """Whether an input has been written to since, as far as it tells."""
        return versions_of({path: self.call.tensors[path]}).get(path) != self.versions.get(path)

    def before(self, path: str) -> torch.Tensor | None:
        """An input as it was; None where there is none, or nobody knows."""
        return self.call.tensors[path] if path in self.call.tensors and not self.was_written(path) else None


class Steps:
    """The present step of a generation and the one before.

    Attributes:
        hit: whether a call of the present step was made as foreseen.
        missed: whether one was made otherwise.
        misses: how many steps in a row, of those that had foreseen calls, had one that was not made as foreseen.
        gave_up: whether no call is foreseen any more.
        why: why a call of the present step was not foreseen; None where none is known of.
    """

    def __init__(self) -> None:
        self.hit = False
        self.missed = False
        self.misses = 0
        self.gave_up = False
        self.why: str | None = None
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
        like, kept = {}, {}
        for path, role in stepwise_inputs(call).items():
            tensor = call.tensors[path]
            given = first.before(path) if first is not None else None
            if given is not None:
                like[path] = SameBits(tensor, with_rows(given, len_of(tensor)))
            former = own.before(path) if own is not None and role is Role.STEP else None
            if former is not None:
                kept[path] = SameBits(tensor, former)
        self._now[stream] = _Made(call, versions_of(call.tensors), like, kept)

    def take_back(self, stream: Stream) -> None:
        """Have a stream's call of the present step not been made."""
        self._now.pop(stream, None)

    @property
    def has_begun(self) -> bool:
        """Whether the last call that was taken is the first of its step."""
        return len(self._now) == 1

    def expected(self, first: Stream) -> list[Stream]:
        """The streams that are to be called at the present step, which this one's call has begun, too."""
        return [stream for stream in self._before if stream is not first]

    def next_call(self, stream: Stream, first: Stream) -> DenoiserCall | str:
        """A stream's call at the present step, or why it cannot be foreseen.

        Args:
            stream: that was called at the step before.
            first: that the present step's first call belongs to, the only one so far.
        """
        if first not in self._before:
            return NEW_STREAM
        made, now = self._before[stream], self._now[first].call
        stepwise = stepwise_inputs(made.call)
        inputs = dict(made.call.tensors)
        for path, tensor in inputs.items():
            if path in stepwise and path in now.tensors and self._are_alike(stream, first, path):
                tensor = with_rows(now.tensors[path], len_of(tensor))
            elif made.was_written(path) or (path in stepwise and not made.kept.get(path)):
                return f"{path} was neither that of the step's first call nor as before"
            # an inference tensor does not tell whether it is written to: a copy is what it was
            inputs[path] = tensor.clone() if tensor.is_inference() else tensor
        return replace(made.call, caller=now.caller, tensors=inputs, number=now.number)

    def _are_alike(self, stream: Stream, first: Stream, path: str) -> bool:
        """Whether an input of two streams' calls at the step before was the same but for how often rows came."""
        return self._was_like_first(stream, path) and self._was_like_first(first, path)

    def _was_like_first(self, stream: Stream, path: str) -> bool:
        made = self._before[stream]
        if path not in made.call.tensors:
            return False
        return stream is next(iter(self._before)) or bool(made.like.get(path))


def len_of(tensor: torch.Tensor) -> int:
    """How many rows a tensor has; 0 where it has no dimensions."""
    return len(tensor) if tensor.dim() else 0


def with_rows(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """The same rows again and again, or the first of them only; the tensor itself where that is nothing.

    >>> with_rows(torch.tensor([[1], [2]]), 4).flatten().tolist(), with_rows(torch.tensor([1, 1]), 1).tolist()
    ([1, 2, 1, 2], [1])
    """
    have = len_of(tensor)
    if not have or not rows or rows == have:
        return tensor
    if have % rows == 0:
        return tensor[:rows]
    return tensor.repeat(rows // have, *[1] * (tensor.dim() - 1)) if rows % have == 0 else tensor


def stepwise_inputs(call: DenoiserCall) -> dict[str, Role]:
    """The inputs of a call that may be others at the next step, with their roles."""
    return {item.name: item.role for item in call.graph.inputs if item.role > Role.PROMPT}


def versions_of(tensors: Tensors) -> dict[str, int]:
    """How often each tensor was written to, by path; inference tensors do not tell."""
    return {path: version_of(tensor) for path, tensor in tensors.items()}
