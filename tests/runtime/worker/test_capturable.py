"""obstacle: what cannot be captured is found by running it once, and its node is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx
from torch.nn.functional import scaled_dot_product_attention

from runtime.worker.capturable import obstacle

CPU = torch.device("cpu")
X = torch.ones(2, 3)


def module_of(*functions: Callable[[Any], Any]) -> fx.GraphModule:
    """Functions of one argument, one after the other, as nodes v0, v1, ..."""
    graph = fx.Graph()
    value: Any = graph.placeholder("read_0")
    for index, function in enumerate(functions):
        value = graph.create_node("call_function", function, (value,), name=f"v{index}")
    graph.output((value,))
    return fx.GraphModule({}, graph)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x * x.sum().item(), "_local_scalar_dense.default has the host wait"),
        (lambda x: x if x.sum() > 0 else -x, "has the host wait"),
        (lambda x: x + torch.equal(x, x), "aten.equal.default has the host wait"),
        (lambda x: x.nonzero(), "aten.nonzero.default makes a tensor whose size"),
        (lambda x: x[x > 0], "aten.index.Tensor makes a tensor whose size"),
        (lambda x: x.clone().index_put_((x > 0,), x.new_zeros(())), "aten.index_put_.default makes"),
        (lambda x: x.to("meta"), "moves values between the GPU and meta"),
        (lambda x: x.sum().to("meta"), "moves values between the GPU and meta"),
        (lambda x: x.add_(1), "aten.add_.Tensor writes to an input"),
        (lambda x: x[0].mul_(2), "aten.mul_.Tensor writes to an input"),
    ],
)
def test_obstacles(function: Callable[[Any], Any], reason: str) -> None:
    before = torch.t if "writes" in reason else torch.neg
    found = obstacle(module_of(before, function), [X.clone()], CPU)
    assert found is not None
    node, why = found
    assert node == "v1"
    assert reason in why
    assert "\n" not in why, "a sentence's end"


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[torch.tensor([0, 1, 1])],
        lambda x: x + torch.arange(3),
        lambda x: x.new_zeros(2, 3).add_(x).neg_(),
        lambda x: torch.where(x > 0, x, x * 2),
        lambda x: x.float().softmax(-1).to(torch.float16),
        lambda x: x.masked_fill(x > 0, 0.0),
    ],
)
def test_what_may_be_captured(function: Callable[[Any], Any]) -> None:
    assert obstacle(module_of(function), [X], CPU) is None


@torch.library.custom_op("capturable::attention", mutates_args=())
def attention(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As torch's attention on a GPU: beside the result, a number for the random state, elsewhere."""
    return x * 2, torch.empty((), dtype=torch.int64, device="meta")


def test_what_an_operator_notes_elsewhere_beside_its_result_is_no_move() -> None:
    found = obstacle(module_of(lambda x: attention(x)[0]), [X], CPU)
    assert found is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("width", [6, 64])  # torch chooses another kernel
def test_attention_on_a_gpu_may_be_captured(dtype: torch.dtype, width: int) -> None:
    given = torch.ones(2, 3, 16, width, device="cuda", dtype=dtype)
    module = module_of(lambda x: scaled_dot_product_attention(x, x, x))
    assert obstacle(module, [given], torch.device("cuda", 0)) is None


def test_an_input_that_is_elsewhere() -> None:
    assert obstacle(module_of(torch.neg), [torch.ones(2, device="meta")], CPU) == ("", "an input is not on the GPU")


def test_what_raises_is_for_the_call_to_say() -> None:
    assert obstacle(module_of(lambda x: x.view(7)), [X], CPU) is None
