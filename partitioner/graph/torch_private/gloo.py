"""Process groups of gloo, apart from torch.distributed's default one."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from torch.distributed import ProcessGroupGloo


def gloo_group(store: Any, rank: int, world: int, *, host: str, timeout: timedelta) -> Any:
    """A gloo process group of its own, apart from torch.distributed's default one.

    Args:
        store: A torch.distributed.Store, where the ranks find each other.
        rank: This process's number; world: how many processes there are.
        host: Address of the network interface that it is bound to.
        timeout: For connecting, and for every wait that names no other.
    """
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [ProcessGroupGloo.create_device(hostname=host)]
    options._timeout = timeout
    return ProcessGroupGloo(store, rank, world, options)
