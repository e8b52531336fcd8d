"""OwnAttention: notes where a forward chooses, for a part of its work, how torch is to compute attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

_ATTENTION: Callable[..., Any] = scaled_dot_product_attention  # also where a user puts another in its place


class OwnAttention(TorchFunctionMode):
    """Watches the calls of attention that are made inside it.

    A graph has the operator, not torch's setting at its call: ``torch.nn.attention.sdpa_kernel`` in a forward leaves no
    trace. Around the whole call it is a setting of the process, which ranks follow.

    >>> with OwnAttention(lambda: "attn1") as watch, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
    ...     made = scaled_dot_product_attention(*torch.zeros(3, 1, 2, 4, 8))
    >>> watch.places
    ['attn1']
    """

    def __init__(self, where: Callable[[], str]) -> None:
        """Watch. where: gives the path of the module whose forward is running."""
        super().__init__()
        self.places: list[str] = []
        self._where = where
        self._around = _setting()

    def __torch_function__(
        self, func: Callable[..., Any], _types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is _ATTENTION and _setting() != self._around:
            self.places.append(self._where())
        return func(*args, **(kwargs or {}))


def _setting() -> tuple[bool, ...]:
    return tuple(getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in _KINDS)


_KINDS = ("flash", "mem_efficient", "math", "cudnn")
