"""digest: a fingerprint of a module's state, by which weights are known to be the same."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def digest(module: nn.Module) -> str:
    """SHA-256 of all parameters and buffers, in order of their names, with names, shapes and dtypes.

    >>> layer = nn.Linear(2, 2)
    >>> before = digest(layer)
    >>> with torch.no_grad():
    ...     _ = layer.bias.add_(1)
    >>> digest(layer) == before
    False
    """
    found = hashlib.sha256()
    for name, tensor in sorted([*module.named_parameters(), *module.named_buffers()]):
        found.update(f"{name}{list(tensor.shape)}{tensor.dtype}".encode())
        found.update(_bytes(tensor.detach()))
    return found.hexdigest()


def _bytes(tensor: torch.Tensor) -> bytes:
    if tensor.is_meta:  # offloaded: its values are elsewhere
        return b"meta"
    if type(tensor) is not torch.Tensor:  # quantised: its parts
        names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
        return b"".join(_bytes(getattr(tensor, name)) for name in names)
    raw: bytes = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return raw
