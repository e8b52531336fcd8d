"""HookedDenoiser: one rank's denoiser under AsyncDiff's policy, with its modules' outputs replaced by lagged ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from tools.bench.asyncdiff_policy import AsyncDiffPolicy

Exchange = Callable[[torch.Tensor, int], None]


class HookedDenoiser:
    """One rank's denoiser under a policy; called with the denoiser's keyword arguments.

    Args:
        denoiser: its hooked modules get another ``forward``.
        policy: which modules are hooked, and which of their outputs are sent.
        component: that this rank computes.
        exchange: (tensor, component) -> None; broadcasts a contiguous tensor from that component's rank, in place,
            and returns when it is there.
    """

    def __init__(self, denoiser: nn.Module, policy: AsyncDiffPolicy, component: int, exchange: Exchange) -> None:
        self._denoiser = denoiser
        self._component = component
        self._exchange = exchange
        self._last = len(policy.components) - 1
        self._hooks = {path: _Hook(denoiser.get_submodule(path), owner) for path, owner in policy.owner.items()}
        self._sent = [self._hooks[path] for path in policy.sent]
        self.start(1)

    def start(self, warmup: int) -> None:
        """Begin a trajectory. Its first ``warmup`` calls are exact, and only the last of these sends anything."""
        self._calls, self._warmup = 0, warmup

    def __call__(self, **arguments: Any) -> torch.Tensor:
        """The denoiser's first output."""
        lagged = self._calls >= self._warmup
        if lagged:
            for hook in self._sent:
                self._exchange(hook.flat, hook.owner)
        for hook in self._hooks.values():
            hook.computes = not lagged or hook.owner == self._component
            hook.keeps = self._calls >= self._warmup - 1
        # a copy: where the last module is another rank's, this is what the next broadcast writes to
        output: torch.Tensor = self._denoiser(**arguments)[0].clone(memory_format=torch.contiguous_format)
        self._calls += 1
        if self._calls >= self._warmup:
            self._exchange(output, self._last)
        return output


class _Hook:
    """Replaces a module's forward: it computes, or returns the output that is kept, as one flat tensor."""

    def __init__(self, module: nn.Module, owner: int) -> None:
        self.owner = owner
        self.computes = self.keeps = True
        self.flat = torch.zeros(0)
        self._shapes: list[torch.Size] = []
        self._structure: Any = None
        self._forward = module.forward
        module.forward = self.forward  # torch's own forward hooks cannot leave the computation out

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.computes:
            return _nested(self._structure, list(self._pieces()))
        output = self._forward(*args, **kwargs)
        if self.keeps:
            tensors: list[torch.Tensor] = []
            self._structure = _flattened(output, tensors)
            self._shapes = [tensor.shape for tensor in tensors]
            # one message per module, so one tensor
            self.flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        return output

    def _pieces(self) -> Sequence[torch.Tensor]:
        sizes = [shape.numel() for shape in self._shapes]
        return [part.view(shape) for part, shape in zip(torch.split(self.flat, sizes), self._shapes, strict=True)]


def _flattened(value: Any, tensors: list[torch.Tensor]) -> Any:
    """The structure of a module's output, numbers in place of tensors, which are appended to ``tensors``."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return len(tensors) - 1
    if isinstance(value, (tuple, list)):
        return tuple(_flattened(item, tensors) for item in value)
    raise TypeError(f"a hooked module returns a {type(value).__name__}; expected tensors and tuples of them")


def _nested(structure: Any, tensors: Sequence[torch.Tensor]) -> Any:
    return tensors[structure] if isinstance(structure, int) else tuple(_nested(item, tensors) for item in structure)
