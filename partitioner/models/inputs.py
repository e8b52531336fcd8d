"""Example inputs of a denoiser call: tensors with a role, a shape and a dtype, and literals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from partitioner.graph.nodes import Role

MOST_ELEMENTS = 2**34  # of an argument; a minute of video in pixels has 2**33


@dataclass(frozen=True, slots=True)
class ExampleTensor:
    """One tensor argument: its role, its shape and its dtype (None: that of the denoiser).

    Raises:
        ValueError: The shape holds something else than whole numbers, or is of absurd size.
    """

    role: Role
    shape: tuple[int, ...]
    dtype: str | None = None

    def __post_init__(self) -> None:
        if not all(type(size) is int and size >= 0 for size in self.shape):
            raise ValueError(f"a tensor's shape would be {self.shape}; expected whole numbers")
        if math.prod(self.shape) > MOST_ELEMENTS:
            raise ValueError(f"a tensor of shape {self.shape} would have more than {MOST_ELEMENTS} elements")


Inputs = Mapping[
    str, Any
]  # argument -> ExampleTensor, literal (bool, int, float, str), or dicts, lists, tuples of them


def latent(*shape: int) -> ExampleTensor:
    """The noisy sample, of that shape and of the denoiser's dtype.

    >>> latent(2, 4, 64, 64).shape
    (2, 4, 64, 64)
    """
    return ExampleTensor(Role.LATENT, shape)


def timestep(*shape: int, dtype: str | None = "float32") -> ExampleTensor:
    """The timestep; a scalar without a shape. float32 also stands for the integers that some samplers pass."""
    return ExampleTensor(Role.TIMESTEP, shape, dtype)


def prompt(*shape: int, dtype: str | None = None) -> ExampleTensor:
    """Conditioning that stays the same for a whole trajectory, such as the text's embedding or the image's size."""
    return ExampleTensor(Role.PROMPT, shape, dtype)


def step(*shape: int, dtype: str | None = None) -> ExampleTensor:
    """What is given anew at every step and cannot be foreseen, such as a ControlNet's residuals."""
    return ExampleTensor(Role.STEP, shape, dtype)


def roles_in(inputs: Any, path: str = "") -> Iterator[tuple[str, Role]]:
    """Path and role of each tensor of some inputs, which stand at ``path``.

    >>> dict(roles_in({"x": latent(1, 4), "extra": [prompt(3)]}))
    {'x': <Role.LATENT: 4>, 'extra.0': <Role.PROMPT: 1>}
    """
    if isinstance(inputs, ExampleTensor):
        yield path, inputs.role
    elif isinstance(inputs, (Mapping, list, tuple)):
        for key, value in inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs):
            yield from roles_in(value, f"{path}.{key}" if path else str(key))


def zeros(inputs: Any, dtype: str) -> Any:
    """Arguments with tensors of zeros. dtype: of the tensors that name none."""
    import torch

    if isinstance(inputs, ExampleTensor):
        return torch.zeros(inputs.shape, dtype=getattr(torch, inputs.dtype or dtype))
    if isinstance(inputs, Mapping):
        return {name: zeros(value, dtype) for name, value in inputs.items()}
    return type(inputs)(zeros(value, dtype) for value in inputs) if isinstance(inputs, (list, tuple)) else inputs
