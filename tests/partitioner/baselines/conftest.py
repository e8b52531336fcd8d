"""A traced sd15, which the tests of this folder share."""

from __future__ import annotations

import pytest

from partitioner.costs.roofline import estimate
from partitioner.graph.ir import TracedGraph
from partitioner.models.find_spec import model_spec
from partitioner.models.spec import trace_model
from partitioner.planning.build_problem import build_problem
from partitioner.search.problem import Problem


@pytest.fixture(scope="package")
def sd15() -> tuple[TracedGraph, Problem]:
    graph = trace_model(model_spec("sd15"))
    return graph, build_problem(graph, estimate(graph))
