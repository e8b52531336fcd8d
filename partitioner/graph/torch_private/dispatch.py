"""Modes that see each call of an operator before it is made."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from partitioner.graph.torch_private.schemas import OpOverload, draws_random_numbers

__all__ = ["Draws", "TorchDispatchMode"]


class Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes whether random numbers are drawn inside it, by this thread. drew: whether so."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drew = False

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.drew = self.drew or draws_random_numbers(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))
