"""The one place of runtime that touches torch's private names, so that a new release is met in one file."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from torch.distributed import ProcessGroupGloo
from torch.distributed import Store as Store  # type: ignore[attr-defined] # public, but not in its __all__


def gloo_group(store: Store, rank: int, world: int, *, host: str, timeout: timedelta) -> Any:
    """A gloo group of its own, apart from torch.distributed's default one, bound to the interface of ``host``.

    timeout: for connecting, and for every wait that names none.
    """
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [ProcessGroupGloo.create_device(hostname=host)]
    options._timeout = timeout
    return ProcessGroupGloo(store, rank, world, options)
