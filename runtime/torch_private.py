"""The one place of runtime that touches torch's private names, so that a new release is met in one file."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore


def open_store(address: tuple[str, int], *, timeout: timedelta, serve: bool = False) -> Any:
    """Connect to the rendezvous store at (host, port); with ``serve`` start it (port 0: any free one)."""
    host, port = address
    return TCPStore(host, port, None, serve, timeout=timeout, wait_for_workers=False)


def gloo_group(store: Any, rank: int, world: int, *, host: str, timeout: timedelta) -> Any:
    """A gloo group of its own, apart from torch.distributed's default one, bound to the interface of ``host``."""
    options = ProcessGroupGloo._Options()
    options._devices = [ProcessGroupGloo.create_device(hostname=host)]
    options._timeout = timeout
    return ProcessGroupGloo(PrefixStore("diffusion-partitioner", store), rank, world, options)
