"""TinyDenoiser: a denoiser class of diffusers, a small configuration of it, and the arguments of one call."""

from __future__ import annotations

import importlib
import inspect
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tools.denoisers import Denoiser, seeded


@dataclass(frozen=True)
class CallTensor:
    """One tensor argument of a call: its role, and its values or the shape of random ones.

    Attributes:
        role: "latent", "timestep", "step" or "prompt", as in ``partitioner.trace``.
        shape: Of a tensor of normally distributed values, or of as many equal ones.
        values: The values themselves (nested lists of numbers), or the one number that all are. Default: random.
        dtype: "float32", "int64" or "bool".
    """

    role: str
    shape: tuple[int, ...] | None = None
    values: Any = None
    dtype: str = "float32"

    def tensor(self, generator: torch.Generator) -> torch.Tensor:
        """The argument; random values come from the generator."""
        dtype = getattr(torch, self.dtype)
        if self.shape is None:
            return torch.tensor(self.values, dtype=dtype)
        if self.values is None:
            return torch.randn(self.shape, generator=generator).to(dtype)
        return torch.full(self.shape, self.values, dtype=dtype)


def latent(*shape: int) -> CallTensor:
    """The noisy sample."""
    return CallTensor("latent", shape)


def prompt(*shape: int) -> CallTensor:
    """Conditioning, the same for a whole trajectory, of random values."""
    return CallTensor("prompt", shape)


def timestep(*shape: int, value: float = 500.0, dtype: str = "float32") -> CallTensor:
    """The timestep of each row, or of all of them where no shape is given."""
    return CallTensor("timestep", shape, value, dtype)


def constant(value: float, *shape: int, dtype: str = "float32") -> CallTensor:
    """Conditioning whose values are all the same, such as a mask of ones."""
    return CallTensor("prompt", shape, value, dtype)


def given(values: Any, dtype: str = "float32") -> CallTensor:
    """Conditioning of these values, such as a size or token numbers."""
    return CallTensor("prompt", None, values, dtype)


def tokens(values: Any) -> CallTensor:
    """A noisy sample of token numbers."""
    return CallTensor("latent", None, values, "int64")


def mask(*shape: int) -> CallTensor:
    """A mask of text of which everything counts."""
    return constant(True, *shape, dtype="bool")


def grid(*sizes: int, rows: int | None = None, start: tuple[int, ...] = (), dtype: str = "float32") -> CallTensor:
    """The positions of tokens on a grid, [tokens, axes], or [rows, tokens, axes].

    >>> grid(1, 2, 2).values
    [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]
    """
    firsts = start or (0,) * len(sizes)
    axes = (range(first, first + size) for first, size in zip(firsts, sizes, strict=True))
    places = [[*place] for place in itertools.product(*axes)]
    return given([places] * rows if rows else places, dtype)


@dataclass(frozen=True)
class TinyDenoiser:
    """A denoiser class, made small.

    Attributes:
        class_name: Of diffusers; with its module where diffusers does not export it.
        config: The arguments of its constructor.
        arguments: Those of one call as the class's pipeline makes it: CallTensors, literals, functions that make an
            object, and dicts, lists and tuples of them.
    """

    class_name: str
    config: Mapping[str, Any]
    arguments: Mapping[str, Any]

    def cls(self) -> type[nn.Module]:
        """The class itself."""
        module, _, name = f"diffusers.{self.class_name}".rpartition(".")
        found: type[nn.Module] = getattr(importlib.import_module(module), name)
        return found

    @property
    def name(self) -> str:
        """The class's name, without its module."""
        return self.class_name.rpartition(".")[2]

    def module(self, **changes: Any) -> nn.Module:
        """The module in eval mode, with random weights, and changes to its configuration."""
        module = self.cls()(**{**self.config, **changes}).eval()
        randomise(module)
        return module

    def make(self, seed: int = 0) -> Denoiser:
        """The module, the arguments of a call and their roles."""
        with seeded(seed) as generator:
            module = self.module()
            arguments = {name: _made(value, generator) for name, value in self.arguments.items()}
        if "return_dict" in inspect.signature(module.forward).parameters:
            arguments["return_dict"] = False
        return module, arguments, dict(_roles("", self.arguments))


def randomise(module: nn.Module) -> None:
    """Give random values to matrices, which a constructor may leave as they are in memory, and to what it sets to zero.

    Zeros would hide all that comes before them.
    """
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1 / math.sqrt(max(1, parameter[0].numel())))
            elif parameter.numel() and not parameter.any():
                parameter.normal_(std=0.1)


def _made(value: Any, generator: torch.Generator) -> Any:
    if isinstance(value, CallTensor):
        return value.tensor(generator)
    if isinstance(value, Mapping):
        return {key: _made(item, generator) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_made(item, generator) for item in value)
    return value() if callable(value) else value


def _roles(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, CallTensor):
        yield path, value.role
    elif isinstance(value, Mapping | list | tuple):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _roles(f"{path}.{key}" if path else str(key), item)
