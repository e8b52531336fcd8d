"""DenoiserChanges: notices between two calls what has been done to the denoiser that an engine runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from operator import attrgetter

import torch
from torch import nn

from partitioner.graph.module_form import ModuleForm
from partitioner.graph.module_state import Difference, ModuleState
from partitioner.graph.tensor_values import TensorValues

# What an engine puts on a denoiser itself, and the hooks that torch runs around the engine.
TAKEN_OVER = frozenset({"forward", "cache_context", "_compiled_call_impl", "_forward_hooks", "_forward_pre_hooks"})
KEPT = 6  # states of a denoiser, its present one included
_needs_gradient = attrgetter("requires_grad")


@dataclass(frozen=True)
class DenoiserChange:
    """What was done to a denoiser.

    Attributes:
        differences: what else than the values of tensors is another.
        written: tensors that hold other values, or may do so.
        state: the number of what the denoiser is now: that of an earlier time where it is again what it was then.
        turned: whether it has only turned into another state, and may turn back; else all that it was is past.
        is_known: whether it has been in that state before.
    """

    differences: Sequence[Difference]
    written: Sequence[torch.Tensor]
    state: int
    turned: bool = False
    is_known: bool = False


@dataclass(eq=False)
class _State:
    """What the denoiser has been since the last snapshot, and may be again.

    Attributes:
        number: of it.
        forms: of the modules that were others than in the snapshot by then.
        gradients: whether each tensor required a gradient.
    """

    number: int
    forms: Mapping[str, ModuleForm]
    gradients: Sequence[bool]


class DenoiserChanges:
    """What a denoiser was when it was last looked at, to tell what is another now, or what it is again.

    Pipelines put hooks on a denoiser between two calls of a step, or scale its adapters, and take that back. What it
    is by turns are its states: the last KEPT are known again.
    """

    def __init__(
        self, denoiser: nn.Module, ignored: frozenset[str], marks: Callable[[], Mapping[int, object]] = dict
    ) -> None:
        """Take it as it is.

        Args:
            denoiser: what an engine runs.
            ignored: names of attributes of the denoiser itself that do not count.
            marks: see TensorValues.
        """
        self._denoiser = denoiser
        self._ignored = ignored
        self._marks = marks
        self._numbers = count()
        self._now: _State
        self._known: list[_State]
        self._quiet: set[tuple[_State, _State]]  # from one to the other, and nothing was written
        self._take()

    @property
    def state(self) -> int:
        """The number of what the denoiser was when it was last looked at."""
        return self._now.number

    def seems_changed(self) -> bool:
        """Whether ``found`` may find something without a thorough look, beside what ``was_written`` tells.

        It takes note of nothing.
        """
        return self._state.changed() or self._values.moved() or self._gradients_now() != self._now.gradients

    def was_written(self) -> bool:
        """Whether memory that ranks may share holds other values, as far as torch has counted writes to it."""
        return self._values.written()

    def found(self, *, thorough: bool) -> DenoiserChange | None:
        """What was done since the last time that this was asked; None if nothing.

        Args:
            thorough: also read all tensors, which is the only way to notice a write through ``.data``; otherwise only
                where something else was done as well.
        """
        moved, gradients = self._state.changed(), self._gradients_now()
        looked_at = thorough or self._values.changed()
        if not (moved or looked_at or gradients != self._now.gradients):
            return None
        differences = self._state.follow() if moved else []
        if differences is None:
            return self._past(list(self._state.differences()), gradients)
        written = self._values.which() if looked_at else []
        if self._constants_among(written) or self._others_in_form(written, gradients):
            return self._past(differences, gradients)
        if differences or gradients != self._now.gradients:
            return self._turned(differences, written, gradients)
        self._values.settle(written)
        return DenoiserChange([], written, self.state) if written else None

    def _past(self, differences: list[Difference], gradients: Sequence[bool]) -> DenoiserChange | None:
        """What was done, where it is not to be taken back. differences: of what is no tensor."""
        written = self._values.which()
        differences += self._constants_among(written)
        differences += self._others_in_form(self._state.tensors if gradients != self._now.gradients else written)
        if differences:
            self._take()
        else:
            self._values.settle(written)
        return DenoiserChange(differences, written, self.state) if differences or written else None

    def _turned(
        self, differences: list[Difference], written: list[torch.Tensor], gradients: list[bool]
    ) -> DenoiserChange | None:
        """The state that the denoiser has turned into, where only attributes, hooks and values are others."""
        if gradients != self._now.gradients:
            differences += self._others_in_form(self._state.tensors)
            self._forms = {id(tensor): _form(tensor) for tensor in self._state.tensors}
        now = _State(next(self._numbers), dict(self._state.forms), gradients)
        known = next((state for state in self._known if self._are_alike(state, now)), now)
        if written:
            self._values.settle(written)
        if (self._now, known) not in self._quiet:
            if self._values.which():
                past = self._past(differences, gradients)
                return replace(past, written=[*past.written, *written]) if past is not None else None
            self._quiet = {pair for pair in self._quiet if set(pair) <= set(self._known)} | {(self._now, known)}
        self._known = [*(state for state in self._known if state is not known), known][-KEPT:]
        self._now = known
        return DenoiserChange(differences, written, known.number, turned=True, is_known=known is not now)

    def _are_alike(self, one: _State, other: _State) -> bool:
        former = self._state.former
        return one.gradients == other.gradients and all(
            one.forms.get(path, former[path]) == other.forms.get(path, former[path]) for path in former
        )

    def settle(self) -> None:
        """Take the memory that tensors lie in as it is: an engine itself has moved some."""
        self._values.settle()

    def _take(self) -> None:
        self._state = ModuleState(self._denoiser, self._ignored)
        self._forms = {id(tensor): _form(tensor) for tensor in self._state.tensors}
        self._now = _State(next(self._numbers), {}, self._gradients_now())
        self._known = [self._now]
        self._quiet = set()
        self._values = TensorValues(self._state.tensors, self._marks)

    def _gradients_now(self) -> list[bool]:
        """Whether each tensor requires a gradient: torch.matmul computes by that, even where none is wanted."""
        return list(map(_needs_gradient, self._state.tensors))

    def _constants_among(self, written: Sequence[torch.Tensor]) -> list[Difference]:
        """Tensors that are neither parameters nor buffers: what they hold may be a constant of the graph."""
        if not written:
            return []
        given = {id(tensor) for tensor in (*self._denoiser.parameters(), *self._denoiser.buffers())}
        loose = [tensor for tensor in written if id(tensor) not in given]
        return [Difference("", f"a tensor of shape {list(tensor.shape)} beside parameters", False) for tensor in loose]

    def _others_in_form(
        self, tensors: Sequence[torch.Tensor], gradients: Sequence[bool] | None = None
    ) -> list[Difference]:
        """Those that have another dtype, shape or device now, as after ``.half()``, or are to be trained or not.

        gradients: which is not to count.
        """
        others = []
        for tensor in tensors:
            now, before = _form(tensor), self._forms[id(tensor)]
            if (now[:-1], gradients is None and now[-1]) != (before[:-1], gradients is None and before[-1]):
                others.append(tensor)
        return [
            Difference(
                "",
                f"a parameter that is {tensor.dtype}{list(tensor.shape)} now, requires_grad={tensor.requires_grad}",
                True,
            )
            for tensor in others
        ]


def _form(tensor: torch.Tensor) -> tuple[object, ...]:
    strides = tensor.stride() if tensor.layout is torch.strided else ()
    return tensor.shape, strides, tensor.dtype, tensor.device, tensor.requires_grad
