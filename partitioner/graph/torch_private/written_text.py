"""What torch writes for people while it traces, and keeps: Python code, stack traces, whole graphs."""

from __future__ import annotations

import importlib
import linecache
import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.fx import GraphModule
from torch.fx import proxy as fx_proxy
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.fx.graph_module import _loader


@contextmanager
def nothing_to_read(lines: bool) -> Iterator[None]:
    """Inside the block, torch.export writes neither stack traces nor Python code for people, a fifth of its time.

    Nor does it print the whole graph where it fails.

    Args:
        lines: Write stack traces all the same, into each node's meta.
    """
    trace_module: Any = importlib.import_module("torch.export._trace")  # here, for it takes half a second
    proxies: Any = fx_proxy
    before = proxies.CapturedTraceback
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = logger.level
    try:
        if not lines:  # torch.fx.config.do_not_emit_stack_traces says the same from torch 2.12 on
            proxies.CapturedTraceback = _NoTraceback
        logger.setLevel(logging.ERROR)
        trace_module.print = lambda *_, **__: None
        with _use_lazy_graph_module(True):  # code is written when it is first called or read
            yield
    finally:
        del trace_module.print
        logger.setLevel(level)
        proxies.CapturedTraceback = before


class _NoTraceback:
    """Stands for torch's CapturedTraceback."""

    @classmethod
    def extract(cls) -> type[_NoTraceback]:
        """Nothing."""
        return cls

    @staticmethod
    def summary() -> None:
        """Nothing."""


@contextmanager
def forgotten_sources() -> Iterator[None]:
    """After the block, free the source text of the GraphModules that were made in it.

    torch keeps it for ever, for tracebacks: a program that traces again and again would grow.
    """
    before = set(_loader.eval_cache)
    try:
        yield
    finally:
        for name in set(_loader.eval_cache) - before:
            _forget_source(name)


def forget_source_with(module: GraphModule) -> None:
    """Free the module's source text when the module is collected."""
    weakref.finalize(module, _forget_source, module.forward.__code__.co_filename)


def _forget_source(name: str) -> None:
    _loader.eval_cache.pop(name, None)
    linecache.cache.pop(name, None)
