"""What CUDA graphs keep is what is planned, byte by byte: on a CPU that plays graphs, for a UNet and a transformer."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

import partitioner
from runtime.devices import cuda_graphs
from runtime.engine import Engine
from runtime.options import EngineOptions
from runtime.transport.local import LocalMailbox
from tests.support.captured_graphs import captured_on_cpu
from tests.support.plans import plan_simply
from tests.support.small_denoisers import SMALL, sample, scheduler_of


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet", "transformer"])
@pytest.mark.parametrize("mode", ["lookahead", "async"])
def test_graphs_keep_what_is_planned(name: str, mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser, inputs, roles = SMALL[name]()
    plan = plan_simply(partitioner.trace(denoiser, inputs, roles), 2, branches=1, mode=mode).plan
    held: dict[int, dict[int, Any]] = defaultdict(dict)  # by component, by the tensor's id: itself

    class Noted(cuda_graphs._Capture):
        def __init__(self, graphed: Any, inputs: Any, memory: Any, device: Any) -> None:
            super().__init__(graphed, inputs, memory, device)
            own = [mine for mine, fixed in zip(self._arguments, graphed.fixed, strict=True) if not fixed]
            for tensor in cuda_graphs._tensors([*own, *self._outputs]):
                held[id(memory)][id(tensor)] = tensor

    captured_on_cpu(monkeypatch)
    monkeypatch.setattr(cuda_graphs, "_Capture", Noted)
    deliver = LocalMailbox.deliver  # as between processes: what is sent is copied
    monkeypatch.setattr(LocalMailbox, "copies_sent", True)
    monkeypatch.setattr(LocalMailbox, "deliver", lambda mailbox, key, tensor: deliver(mailbox, key, tensor.clone()))
    with Engine(denoiser, plan, EngineOptions(exact=True, transport="emulation")) as engine:
        sample(
            engine, inputs, scheduler_of(10)
        )  # captured values have other strides here, so that what reads them waits again
    sizes = [sum(tensor.nbytes for tensor in tensors.values()) for tensors in held.values()]
    assert sorted(sizes) == sorted(component.graph_bytes for component in plan.predicted.components)
