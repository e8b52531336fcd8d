"""The denoiser of a pipeline: finds it, and stands in for it while an engine computes."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from partitioner.graph.arguments import bind_arguments
from runtime.engine import Engine
from runtime.errors import InputError

DENOISER_NAMES = ("unet", "transformer")


def denoiser_name(pipe: Any) -> str:
    """The name of the attribute that holds a pipeline's denoiser: "unet" or "transformer".

    Raises:
        InputError: the pipeline has no denoiser or two, or an engine already stands in for it.

    >>> from types import SimpleNamespace
    >>> denoiser_name(SimpleNamespace(unet=torch.nn.Identity()))
    'unet'
    """
    names = [name for name in DENOISER_NAMES if isinstance(getattr(pipe, name, None), nn.Module)]
    if len(names) != 1:
        found = " and ".join(names) or "neither"
        raise InputError(
            f"a {type(pipe).__name__} has {found}; expected a diffusers pipeline with one denoiser, as "
            f"{' or '.join(DENOISER_NAMES)}"
        )
    if isinstance(getattr(pipe, names[0]), DistributedDenoiser):
        raise InputError("this pipeline is already inside a parallelize block; leave it first")
    return names[0]


class DistributedDenoiser(nn.Module):
    """Stands in for a denoiser in its pipeline: an engine computes; everything else is the denoiser's own.

    It is called as the denoiser is, and has its config, dtype, device and other attributes, but no parameters.
    """

    def __init__(self, denoiser: nn.Module, engine: Engine) -> None:
        super().__init__()
        # not as submodules: this module owns no parameters, and a pipeline that moves it moves nothing
        self.__dict__["_denoiser"] = denoiser
        self.__dict__["_engine"] = engine
        self.__dict__["_output_class"] = _output_class(denoiser)
        self.eval()

    @property
    def dtype(self) -> torch.dtype:
        """The denoiser's."""
        dtype: torch.dtype = self._denoiser.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """The denoiser's."""
        device: torch.device = self._denoiser.device
        return device

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_denoiser"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Make one denoiser call; arguments and result are the denoiser's own, return_dict included."""
        output = self._engine(*args, **kwargs)
        by_name = bind_arguments(self._denoiser, args, kwargs).get("return_dict", True)
        return self._output_class(*output) if by_name and self._output_class is not None else output

    @contextmanager
    def cache_context(self, name: str, **_details: Any) -> Iterator[None]:
        """Have the calls inside belong to a cache context of diffusers: contexts do not see each other's messages."""
        self._engine.in_context(name)
        try:
            yield
        finally:
            self._engine.in_context("")


def _output_class(denoiser: nn.Module) -> type | None:
    """The output class that the denoiser's forward names as its return type, or None."""
    try:
        hint = typing.get_type_hints(type(denoiser).forward).get("return")
    except (NameError, TypeError):
        return None
    choices = typing.get_args(hint) or (hint,)
    return next((c for c in choices if isinstance(c, type) and hasattr(c, "__dataclass_fields__")), None)
