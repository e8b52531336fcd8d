"""partitioner.planning.sources: the graphs of a spec, a module, and graphs that are there."""

from __future__ import annotations

import gc

import pytest
import torch

from partitioner.graph.export import trace
from partitioner.models.call_rows import CallRows
from partitioner.models.find_spec import model_spec
from partitioner.models.spec import trace_model
from partitioner.planning.sources import FromGraphs, FromModule, FromSpec
from tests.support.chain import ROLES, Chain, arguments


@pytest.mark.slow
def test_a_spec_is_traced_whole_and_by_half() -> None:
    spec = model_spec("tools/trained/unet", dtype="float32")
    said: list[str] = []
    source = FromSpec(spec)
    assert (source.name, source.step, source.divides_unasked) == ("unet", CallRows(2, range(1, 3)), True)
    traced = source.trace([1, 2], said.append)
    assert traced[1].fingerprint == trace_model(spec, rows=1).fingerprint != traced[2].fingerprint
    assert said == ["tracing unet", "tracing 1 of its 2 rows"]
    assert gc.isenabled()
    assert list(source.trace([2], said.append)) == [2]


def test_a_module_is_divided_by_the_rows_of_its_latent_if_asked() -> None:
    module = Chain().eval()
    source = FromModule(module, arguments(4), ROLES, "chain")
    assert (source.step, source.divides_unasked) == (CallRows(4, range(1, 5)), False)
    traced = source.trace([4, 3], print)
    assert traced[3].fingerprint == trace(module, arguments(3), ROLES, model="chain").fingerprint
    assert traced[4].fingerprint == trace(module, arguments(4), ROLES, model="chain").fingerprint


def test_the_arguments_of_a_part_are_taken_where_they_are_given() -> None:
    module = Chain().eval()
    both = FromModule(module, arguments(2), ROLES, "chain", branch_inputs=arguments(1))
    assert (both.step, both.divides_unasked) == (CallRows(2, range(1, 3)), True)
    assert both.trace([1], print)[1].input_by_name["sample"].meta.shape[0] == 1


def test_a_module_whose_inputs_go_with_the_rows_or_not_is_left_whole() -> None:
    unclear = {**arguments(4), "what": torch.zeros(6)}
    step = FromModule(Chain().eval(), unclear, {**ROLES, "what": "prompt"}).step
    assert (step.rows, tuple(step.counts)) == (4, (4,))
    assert step.whole == "whether what goes with the rows cannot be told from its shape"
    part = {**arguments(2), "what": torch.zeros(3)}
    assert FromModule(Chain().eval(), unclear, {**ROLES, "what": "prompt"}, branch_inputs=part).step.whole is None


def test_graphs_are_taken_as_they_are() -> None:
    whole, half = (trace(Chain().eval(), arguments(rows), ROLES, model="chain") for rows in (2, 1))
    source = FromGraphs(whole)
    assert (source.name, source.step.rows, list(source.step.counts)) == ("chain", 2, [2])
    assert source.trace([2], print) == {2: whole}
    both = FromGraphs(whole, (half,), calls=2)
    assert both.trace([1, 2], print) == {1: half, 2: whole}
    assert both.step.calls == 2
