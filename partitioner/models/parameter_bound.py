"""bounded_parameters: a module of absurd size is refused while it is built, by arithmetic, before it has any memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from partitioner.errors import UsageError

MOST_OF_DENOISER = 8192  # tensors; the largest denoiser known has 3,510, and a plan file has room for twice this one's
MOST_OF_PIPELINE = 32768  # with text encoders, some of which have hundreds of experts in each layer


@contextmanager
def bounded_parameters(what: str, most: int, most_bytes: int | None = None) -> Iterator[None]:
    """Inside it modules that this thread builds may not have more parameters, all together.

    Args:
        what: Whose configuration they are built from, for the message.
        most: How many parameters.
        most_bytes: Of all of them; None for any size.

    Raises:
        UsageError: There are more; raised where the first of them is made.

    >>> import torch
    >>> with bounded_parameters("the example", most=3):
    ...     torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(100_000)))
    Traceback (most recent call last):
        ...
    partitioner.errors.UsageError: the example asks for more than 3 parameters; its numbers of layers and widths are ...
    """
    from torch.nn.modules.module import register_module_parameter_registration_hook

    thread = threading.get_ident()
    count, size = 0, 0

    def note(_module: Any, _name: str, parameter: Any) -> None:
        nonlocal count, size
        if parameter is None or threading.get_ident() != thread:
            return
        count += 1
        size += parameter.numel() * parameter.element_size()
        if count > most:
            raise UsageError(
                f"{what} asks for more than {most} parameters; its numbers of layers and widths are those of no model"
            )
        if most_bytes is not None and size > most_bytes:
            raise UsageError(
                f"{what} asks for more than {size / 1e9:.1f} GB of parameters, and its files of weights have far less; "
                "its numbers of layers and widths are not those of its weights"
            )

    hook = register_module_parameter_registration_hook(note)
    try:
        yield
    finally:
        hook.remove()
