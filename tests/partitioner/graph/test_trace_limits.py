"""TraceLimits: a long trace says so, one without end is ended, whichever way a denoiser is traced."""

from __future__ import annotations

import contextlib
import logging

import pytest
import torch
from torch import nn

from partitioner.errors import TraceError
from partitioner.graph import trace_limits
from partitioner.graph.export import fake_mode, trace
from partitioner.graph.trace_limits import TraceLimits, check_nodes

WAYS = {"direct": fake_mode, "torch.export": contextlib.nullcontext}


class Layers(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.count = count

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.count):
            x = self.layer(x)
        return x


@pytest.mark.parametrize("way", WAYS)
def test_a_trace_that_takes_too_long_is_ended(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_limits, "MOST_SECONDS", 0.0)
    with pytest.raises(TraceError, match=r"^tracing layers was ended after 0 s and \d calls of modules"), WAYS[way]():
        trace(Layers(3).eval(), {"x": torch.zeros(1, 4)}, {"x": "latent"}, model="layers")


def test_a_graph_without_end_is_ended() -> None:
    check_nodes(trace_limits.MOST_NODES)
    with pytest.raises(TraceError, match="more than 65536 nodes"):
        check_nodes(trace_limits.MOST_NODES + 1)


def test_a_traced_graph_is_checked_while_it_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_limits, "MOST_NODES", 20)
    with fake_mode():
        trace(Layers(10).eval(), {"x": torch.zeros(1, 4)}, {"x": "latent"})
        with pytest.raises(TraceError, match="more than 20 nodes"):
            trace(Layers(10**9).eval(), {"x": torch.zeros(1, 4)}, {"x": "latent"})


def test_a_long_trace_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = [100.0]
    monkeypatch.setattr(trace_limits.time, "monotonic", lambda: now[0])
    limits = TraceLimits("mine")
    with caplog.at_level(logging.WARNING, "partitioner"):
        for _ in range(4):
            now[0] += 20
            limits.look()
    assert caplog.messages == [
        "tracing mine goes on: 2 calls of modules in 40 s so far",
        "tracing mine goes on: 4 calls of modules in 80 s so far",
    ]
