"""Traced graphs of denoisers, each made once per test process."""

from __future__ import annotations

import functools

from partitioner.graph.export import fake_mode, trace
from partitioner.graph.ir import TracedGraph
from partitioner.models.find_spec import model_spec
from partitioner.models.spec import trace_model
from tools.denoisers import DENOISERS


@functools.cache
def small_graph(name: str) -> TracedGraph:
    with fake_mode():
        module, inputs, roles = DENOISERS[name]()
        return trace(module, inputs, roles, model=name)


@functools.cache
def full_graph(name: str) -> TracedGraph:
    return trace_model(model_spec(name))
