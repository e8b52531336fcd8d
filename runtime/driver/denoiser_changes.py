"""DenoiserChanges: notices between two calls what has been done to the denoiser that an engine runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import nn

from partitioner.graph.module_state import Difference, ModuleState
from partitioner.graph.tensor_values import TensorValues

# What an engine puts on a denoiser itself, and the hooks that torch runs around the engine.
TAKEN_OVER = frozenset({"forward", "cache_context", "_compiled_call_impl", "_forward_hooks", "_forward_pre_hooks"})
_needs_gradient = attrgetter("requires_grad")


@dataclass(frozen=True)
class DenoiserChange:
    """What was done to a denoiser.

    Attributes:
        differences: what else than the values of tensors is another; such a denoiser must be traced again.
        written: tensors that hold other values, or may do so.
    """

    differences: Sequence[Difference]
    written: Sequence[torch.Tensor]


class DenoiserChanges:
    """What a denoiser was when it was last looked at, to tell what is another now."""

    def __init__(self, denoiser: nn.Module, ignored: frozenset[str]) -> None:
        """Take it as it is.

        Args:
            denoiser: what an engine runs.
            ignored: names of attributes of the denoiser itself that do not count.
        """
        self._denoiser = denoiser
        self._ignored = ignored
        self._take()

    def found(self, *, thorough: bool) -> DenoiserChange | None:
        """What was done since the last time that this was asked; None if nothing.

        Args:
            thorough: also compare some elements of each tensor, which is the only way to notice a write through
                ``.data``; otherwise only where something else was done as well.
        """
        moved = self._state.changed()
        gradients = self._gradients_now() != self._gradients
        if not (moved or thorough or gradients or self._values.changed()):
            return None
        differences = list(self._state.differences()) if moved else []
        written = self._values.which()
        differences += self._constants_among(written)
        differences += self._others_in_form(self._state.tensors if gradients else written)
        if differences:
            written += self._doubtful(differences)
        if moved or differences or written:
            self._take()
        return DenoiserChange(differences, written) if differences or written else None

    def settle(self) -> None:
        """Take the memory that tensors lie in as it is: an engine itself has moved some."""
        self._values = TensorValues(self._state.tensors)

    def _take(self) -> None:
        self._state = ModuleState(self._denoiser, self._ignored)
        self._forms = {id(tensor): _form(tensor) for tensor in self._state.tensors}
        self._gradients = self._gradients_now()
        self.settle()

    def _gradients_now(self) -> list[bool]:
        """Whether each tensor requires a gradient: torch.matmul computes by that, even where none is wanted."""
        return list(map(_needs_gradient, self._state.tensors))

    def _constants_among(self, written: Sequence[torch.Tensor]) -> list[Difference]:
        """Tensors that are neither parameters nor buffers: what they hold may be a constant of the graph."""
        given = {id(tensor) for tensor in (*self._denoiser.parameters(), *self._denoiser.buffers())}
        loose = [tensor for tensor in written if id(tensor) not in given]
        return [Difference("", f"a tensor of shape {list(tensor.shape)} beside parameters", False) for tensor in loose]

    def _others_in_form(self, tensors: Sequence[torch.Tensor]) -> list[Difference]:
        """Those that have another dtype, shape or device now, as after ``.half()``, or are to be trained or not."""
        others = [tensor for tensor in tensors if _form(tensor) != self._forms[id(tensor)]]
        return [
            Difference(
                "",
                f"a parameter that is {tensor.dtype}{list(tensor.shape)} now, requires_grad={tensor.requires_grad}",
                True,
            )
            for tensor in others
        ]

    def _doubtful(self, differences: Sequence[Difference]) -> list[torch.Tensor]:
        """The tensors below modules of which an attribute is another; that may stand for a write through ``.data``.

        So it does in layers of PEFT that are merged, which note the adapters that they have merged.
        """
        changed = dict.fromkeys(difference.module for difference in differences if not difference.is_part)
        modules = dict(self._denoiser.named_modules())
        found: dict[int, torch.Tensor] = {}
        for path in changed:
            module = modules.get(path)
            if module is not None:
                tensors = (*module.parameters(recurse=path != ""), *module.buffers(recurse=path != ""))
                found |= {id(tensor): tensor for tensor in tensors}
        return list(found.values())


def _form(tensor: torch.Tensor) -> tuple[object, ...]:
    strides = tensor.stride() if tensor.layout is torch.strided else ()
    return tensor.shape, strides, tensor.dtype, tensor.device, tensor.requires_grad
