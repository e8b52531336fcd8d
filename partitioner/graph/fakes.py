"""traceable: a module that lies on a GPU, or is too large to copy, is traced with tensors that have no memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from partitioner.graph.export import fake_mode


@contextmanager
def traceable(module: nn.Module) -> Iterator[None]:
    """A context in which the module can be traced for the cpu, whatever device it is on.

    Make the example inputs inside, where no tensor takes memory, however large a plan says that it is. Where the module
    is not on the cpu, its tensors are replaced by fake ones on the cpu, for which operators are traced as they are for
    plans.

    >>> layer = torch.nn.Linear(2, 3, device="meta")
    >>> with traceable(layer):
    ...     layer.weight.device, layer.weight.shape
    (device(type='cpu'), torch.Size([3, 2]))
    """
    tensors = [*module.parameters(), *module.buffers()]
    if all(tensor.device.type == "cpu" for tensor in tensors):
        with fake_mode():
            yield
        return
    swapped: list[tuple[dict[str, Any], str, torch.Tensor]] = []
    with fake_mode():
        fakes: dict[int, torch.Tensor] = {}
        try:
            for child in module.modules():
                tables: tuple[dict[str, Any], ...] = (child._parameters, child._buffers)
                for slots in tables:
                    for name, tensor in slots.items():
                        if tensor is not None:
                            if id(tensor) not in fakes:
                                fakes[id(tensor)] = _fake_of(tensor)
                            swapped.append((slots, name, tensor))
                            slots[name] = fakes[id(tensor)]
            yield
        finally:
            for slots_, name, tensor in swapped:
                slots_[name] = tensor


def _fake_of(tensor: torch.Tensor) -> torch.Tensor:
    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
