"""Nodes of a traced graph, the values that they read, and what their arguments are: plain data, free of torch.

A *value* is what an operator can read: an input, a parameter or a node's output. Values have names, which are unique in
a graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

DTYPE_BYTES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2,
    "int8": 1, "uint8": 1, "bool": 1, "complex64": 8, "complex128": 16,
    "float8_e4m3fn": 1, "float8_e5m2": 1,
}  # fmt: skip


class Role(IntEnum):
    """What a value depends on. An operator's role is the largest (``max``) of those that it reads.

    CONSTANT: parameters and literals only. PROMPT: also conditioning, which stays the same for a whole trajectory.
    TIMESTEP: also the timestep, but not the latent. LATENT: also the latent. Only LATENT nodes are placed; the others
    are computed by every component that reads them.

    STEP is a role of inputs only: what the caller makes anew at every step, as a ControlNet's residuals, and what is no
    latent, so that nothing can foresee it. Operators that read it are LATENT.
    """

    CONSTANT = 0
    PROMPT = 1
    TIMESTEP = 2
    STEP = 3
    LATENT = 4

    @classmethod
    def parse(cls, text: str) -> Role:
        """The role of that name.

        Raises:
            ValueError: There is none; the message names the choices.

        >>> Role.parse("latent").name
        'LATENT'
        """
        try:
            return cls[text.upper()]
        except KeyError:
            choices = ", ".join(role.name.lower() for role in reversed(cls))
            raise ValueError(f"a role is one of {choices}; got {text!r}") from None


@dataclass(frozen=True, slots=True)
class Ref:
    """A value that a node's arguments refer to by name."""

    name: str

    def __repr__(self) -> str:
        return f"%{self.name}"


@dataclass(frozen=True, slots=True)
class Symbol:
    """A constant of torch in a node's arguments. kind: dtype, device, layout or memory_format."""

    kind: str
    value: str

    def __repr__(self) -> str:
        return f"{self.kind}:{self.value}"


Argument = Any  # Ref | Symbol | TensorData | int | float | bool | str | None | tuple[Argument, ...]


CONSTANT = "graph.tensor"  # the target of a node that makes a tensor of the TensorData that is its argument


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """Shape, strides (in elements) and dtype name of a tensor.

    >>> print(TensorMeta((2, 3), (3, 1), "float16"))
    float16[2,3]
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.numel * DTYPE_BYTES[self.dtype]

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class TensorData:
    """A tensor as data; see graph.constants.

    meta: its shape, strides and dtype; no two of its elements lie in one place. values: its memory. digest: what stands
    for them in a fingerprint.
    """

    meta: TensorMeta
    values: bytes
    digest: str

    def __repr__(self) -> str:
        return f"<{self.meta}: {self.digest}>"


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor argument of the denoiser. name: its path among the arguments ("added_cond_kwargs.text_embeds")."""

    name: str
    meta: TensorMeta
    role: Role


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter or buffer.

    name: of the value in the graph. path: its name in the module ("blocks.0.conv.weight"). requires_grad: as in the
    module; torch chooses kernels by it even where gradients are off, and they round differently in half precision.
    """

    name: str
    path: str
    meta: TensorMeta
    requires_grad: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """One operator call.

    Attributes:
        name: Name of the value that it makes; unique in the graph, but another trace may number it otherwise.
        key: Name that stays the same at other resolutions and batch sizes: "module.path/operator.k", the operator's
            k-th call in that module. Plans use it.
        target: The operator: "aten.linear.default" or "operator.getitem".
        args: Positional arguments; kwargs: keyword arguments, as pairs.
        module: Path of the module that makes the call.
        role: What the value depends on.
        outputs: Shape, strides and dtype of each tensor that it returns.
        group: The same number for nodes that share storage which one of them writes to; they are never cut apart. -1
            for all others.
        reads: Names of the values that it reads, each once, in order.
    """

    name: str
    key: str
    target: str
    args: tuple[Argument, ...]
    kwargs: tuple[tuple[str, Argument], ...]
    module: str
    role: Role
    outputs: tuple[TensorMeta, ...]
    group: int = -1
    reads: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "reads", tuple(dict.fromkeys(refs_in((self.args, *(value for _, value in self.kwargs)))))
        )

    @property
    def meta(self) -> TensorMeta:
        """Shape, strides and dtype of its output.

        Raises:
            ValueError: It has none or several.
        """
        if len(self.outputs) != 1:
            raise ValueError(f"node {self.name} ({self.target}) has {len(self.outputs)} tensor outputs")
        return self.outputs[0]

    def __str__(self) -> str:
        arguments = [repr(a) for a in self.args] + [f"{k}={v!r}" for k, v in self.kwargs]
        shapes = " ".join(map(str, self.outputs))
        return f"%{self.name} = {self.target}({', '.join(arguments)})  # {self.role.name.lower()} {shapes} {self.key}"


def refs_in(argument: Argument) -> Iterator[str]:
    """Names of the values that an argument refers to, in order."""
    if isinstance(argument, Ref):
        yield argument.name
    elif isinstance(argument, tuple):
        for item in argument:
            yield from refs_in(item)
