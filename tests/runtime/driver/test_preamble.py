"""PreambleRunner: what the driver computes for several components is what each would have computed."""

from __future__ import annotations

import torch
from torch import nn

from partitioner.graph.nodes import Role
from runtime.driver.preamble import PreambleRunner
from runtime.worker.specs import build_specs
from tests.support.engines import Trajectory, contiguous
from tests.support.toy_plans import DENOISER, GRAPHS


def test_what_several_components_need_of_the_timestep_is_computed_by_the_driver() -> None:
    graph = GRAPHS[2]()
    specs, preamble = build_specs(graph, contiguous(graph, 3), 3)
    assert {p.path for p in preamble.parameters} == {"time.weight", "time.bias", "prompt.weight", "prompt.bias"}
    roles = {graph.node_by_name[name].role for name in preamble.program.values}
    assert roles == {Role.TIMESTEP, Role.PROMPT}
    runner = PreambleRunner(preamble, dict(DENOISER.named_parameters()), torch.device("cpu"))
    inputs = Trajectory().inputs(0)
    runner.refresh(0, 0, inputs)
    with torch.no_grad():
        values = runner.compute(0, 0, inputs)
        time = nn.functional.silu(DENOISER.time(inputs["t"].reshape(1, 1) / 1000))
        prompt = DENOISER.prompt(inputs["context"])
    expected = {Role.TIMESTEP: time, Role.PROMPT: prompt}
    for name, value in values.items():
        assert torch.equal(value, expected[graph.node_by_name[name].role])
    for spec in specs:
        assert set(preamble.program.values) & {wire.value for wire in spec.wires} == set(preamble.program.values)
