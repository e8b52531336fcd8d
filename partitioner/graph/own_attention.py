"""OwnAttention: notes where a forward chooses, for a part of its work, how torch is to compute attention."""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident

import torch

from partitioner.graph.torch_private.attention_settings import AttentionSettings


class OwnAttention(AttentionSettings):
    """Watches how torch's setting of attention changes inside it.

    A graph has the operator, not torch's setting at its call: ``torch.nn.attention.sdpa_kernel`` in a forward leaves no
    trace. Around the whole call it is a setting of the process, which ranks follow.

    >>> with OwnAttention(lambda: "attn1") as watch, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
    ...     pass
    >>> watch.places
    ['attn1']
    """

    def __init__(self, where: Callable[[], str]) -> None:
        """Watch. where: gives the path of the module whose forward is running."""
        super().__init__()
        self.places: list[str] = []
        self.where = where
        self._around = _setting()
        self._thread = get_ident()

    def changed(self) -> None:
        """Note the place, unless what was set is what was set before, or by another thread."""
        if get_ident() != self._thread:
            return
        place = self.where()
        if _setting() != self._around and place not in self.places:
            self.places.append(place)


def _setting() -> tuple[bool, ...]:
    return tuple(getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in _KINDS)


_KINDS = ("flash", "mem_efficient", "math", "cudnn")
