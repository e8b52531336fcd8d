"""OwnAttention: a forward that chooses how attention is computed is refused; a choice around the call is not."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from partitioner.errors import TraceError
from partitioner.graph.export import trace
from partitioner.graph.own_attention import OwnAttention


class Attention(nn.Module):
    def __init__(self, backends: list[SDPBackend]) -> None:
        super().__init__()
        self.backends = backends

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.backends:
            return functional.scaled_dot_product_attention(x, x, x)
        with sdpa_kernel(self.backends):
            return functional.scaled_dot_product_attention(x, x, x)


def traced(backends: list[SDPBackend]) -> None:
    trace(nn.Sequential(Attention(backends)).eval(), {"input": torch.zeros(1, 2, 4, 8)}, {"input": "latent"})


def test_a_choice_in_the_forward_is_refused_and_names_the_module() -> None:
    with pytest.raises(TraceError, match=r"module 0 chooses .* how torch computes attention .*around the whole call"):
        traced([SDPBackend.MATH])


def test_a_choice_around_the_call_is_the_processs_own() -> None:
    with sdpa_kernel(SDPBackend.MATH):
        traced([])
        traced([SDPBackend.MATH])


def test_what_another_thread_chooses_meanwhile_is_none_of_the_forwards() -> None:
    def choose() -> None:
        with sdpa_kernel(SDPBackend.MATH):
            pass

    with OwnAttention(lambda: "") as watch, ThreadPoolExecutor(1) as pool:
        pool.submit(choose).result()
    assert not watch.places
