"""Whose something is that a forward can get at: the denoiser's, a library's, the user's, or this project's own."""

from __future__ import annotations

import enum
import logging
import sys
import types
import weakref
from contextvars import ContextVar
from typing import Any

import numpy
import torch
from torch import nn

# Packages whose classes keep between two calls only what their objects' attributes hold.
_LIBRARIES = frozenset(
    {"torch", "diffusers", "transformers", "peft", "accelerate", "torchao", "bitsandbytes", "numpy", "safetensors"}
)
_OWN = frozenset({"partitioner", "runtime"})  # an engine's objects are no part of the denoiser that it runs
VALUES = (
    type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.layout, torch.memory_format,
    torch.Size, torch.Generator, enum.Enum, type(Ellipsis), range, slice,
)  # fmt: skip
NOT_FOLLOWED = (
    type, types.ModuleType, types.BuiltinFunctionType, types.CodeType, types.GeneratorType, logging.Logger,
    weakref.ReferenceType,
)  # fmt: skip
_ENDS = (*VALUES, *NOT_FOLLOWED, torch.Tensor, nn.Module, numpy.ndarray, ContextVar)


def is_followed(value: Any) -> bool:
    """Whether what a forward can get at through a value is looked into: it is no tensor, module, class or setting."""
    if isinstance(value, _ENDS) or is_outside(value):
        return False
    return not is_own(type(value).__module__)


def is_own(module: str) -> bool:
    """Whether a module is this project's."""
    return module.partition(".")[0] in _OWN


def is_foreign(module: str) -> bool:
    """Whether a module's code is the user's, say: nobody knows what its classes and functions keep."""
    package = module.partition(".")[0]
    return package not in _LIBRARIES and package not in sys.stdlib_module_names and package not in _OWN


def is_outside(value: Any) -> bool:
    """Whether something is no part of the denoiser: a pipeline, a sampler, the user's Python modules and classes."""
    if isinstance(value, (type, types.ModuleType)):
        return is_foreign(value.__module__ if isinstance(value, type) else value.__name__)
    return hasattr(type(value), "components") or hasattr(type(value), "set_timesteps")
