"""partitioner.planning.sources: the graphs of a spec, a module, and graphs that are there."""

from __future__ import annotations

import gc

import pytest

from partitioner.graph.export import trace
from partitioner.models.spec import model_spec, trace_model
from partitioner.planning.sources import FromGraphs, FromModule, FromSpec
from tests.support.chain import ROLES, Chain, arguments


@pytest.mark.slow
def test_a_spec_is_traced_whole_and_by_half() -> None:
    spec = model_spec("tools/trained/unet", dtype="float32")
    said: list[str] = []
    source = FromSpec(spec)
    assert (source.name, source.has_halves) == ("unet", True)
    traced = source.trace(True, said.append)
    assert traced.half is not None
    assert traced.half.fingerprint == trace_model(spec, branch=True).fingerprint
    assert traced.whole.fingerprint != traced.half.fingerprint
    assert said == ["tracing unet", "tracing one half of its guidance batch"]
    assert gc.isenabled()
    assert source.trace(False, said.append).half is None


def test_a_module_is_traced_by_half_where_the_arguments_of_one_are_given() -> None:
    module = Chain().eval()
    alone = FromModule(module, arguments(2), ROLES, "chain")
    assert not alone.has_halves
    assert alone.trace(True, print).half is None
    both = FromModule(module, arguments(2), ROLES, "chain", branch_inputs=arguments(1))
    traced = both.trace(True, print)
    assert traced.whole.fingerprint == trace(module, arguments(2), ROLES, model="chain").fingerprint
    assert traced.half is not None
    assert traced.half.input_by_name["sample"].meta.shape[0] == 1
    assert both.trace(False, print).half is None


def test_graphs_are_taken_as_they_are() -> None:
    graph = trace(Chain().eval(), arguments(2), ROLES, model="chain")
    source = FromGraphs(graph)
    assert (source.name, source.has_halves, source.trace(True, print)) == ("chain", False, source)
    assert FromGraphs(graph, graph).has_halves
