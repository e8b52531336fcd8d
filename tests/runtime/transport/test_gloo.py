"""Mailboxes: packing, order, what is forgotten; every dtype and layout between processes. Refusals: faults/."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import partitioner
from partitioner.graph.ir import TensorMeta
from runtime.engine import Engine
from runtime.errors import EngineError
from runtime.options import EngineOptions
from runtime.transport.layout import as_bytes, pack, unpack
from runtime.transport.local import LocalMailbox
from runtime.transport.mailbox import Expected, MessageKey
from tests.support.engines import equal, plan_of


@st.composite
def layouts(draw: st.DrawFn) -> torch.Tensor:
    """Tensors of up to 4 dimensions with permuted, sliced, expanded or plain memory."""
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    order = draw(st.permutations(range(len(shape))))
    tensor = torch.randn([shape[d] for d in order]).permute(
        [order.index(d) for d in range(len(shape))] if shape else []
    )
    if shape and draw(st.booleans()):
        tensor = tensor[..., ::2]
    if draw(st.booleans()):
        tensor = tensor.unsqueeze(0).expand(2, *tensor.shape)
    return tensor


def meta_of(tensor: torch.Tensor) -> TensorMeta:
    return TensorMeta(tuple(tensor.shape), tuple(tensor.stride()), str(tensor.dtype).removeprefix("torch."))


@given(layouts(), st.booleans())
def test_unpack_undoes_pack(tensor: torch.Tensor, as_traced: bool) -> None:
    """Also where the tensor lies in memory otherwise than it did when it was traced."""
    meta = meta_of(tensor if as_traced else torch.empty(tensor.shape))
    packed = pack(tensor, meta)
    assert packed.is_contiguous()
    assert packed.numel() == tensor.numel()
    assert torch.equal(unpack(packed.view(-1), meta), tensor)
    assert torch.equal(unpack(as_bytes(packed).view(tensor.dtype), meta), tensor)


@pytest.mark.parametrize(
    "tensor",
    [torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), torch.randn(4, 6).t()],
    ids=["contiguous", "channels last", "transposed"],
)
def test_what_lies_in_memory_as_traced_is_not_copied_and_keeps_its_strides(tensor: torch.Tensor) -> None:
    packed = pack(tensor, meta_of(tensor))
    assert packed.data_ptr() == tensor.data_ptr()
    assert unpack(packed, meta_of(tensor)).stride() == tensor.stride()


@pytest.fixture
def pair() -> list[LocalMailbox]:
    peers: list[LocalMailbox] = []
    for rank in range(2):
        peers.append(LocalMailbox(rank, peers, torch.device("cpu")))
    for peer in peers:
        peer.register(0, [Expected("value", TensorMeta((1,), (1,), "float32"), (0,))])
    return peers


def key(step: int, context: int = 0) -> MessageKey:
    return MessageKey(0, 0, context, step)


def test_messages_are_taken_by_key_and_counted(pair: list[LocalMailbox]) -> None:
    sender, reader = pair
    for step in (2, 1):
        sender.send([1], key(step), torch.full((1,), float(step)))
    assert not reader.ready(key(3))
    assert reader.kept == 2
    assert [float(reader.take(key(step))) for step in (1, 2)] == [1, 2]
    assert reader.kept == 0
    assert sender.sent_bytes == 8
    assert not reader.ready(key(1)), "a message is handed over once"


def test_a_trajectorys_start_drops_earlier_messages_also_those_that_come_late(pair: list[LocalMailbox]) -> None:
    sender, reader = pair
    sender.send([1], key(4), torch.zeros(1))
    sender.send([1], key(4, context=1), torch.zeros(1))
    reader.forget(context=0, before_step=5)
    sender.send([1], key(3), torch.zeros(1))
    sender.send([1], key(5), torch.ones(1))
    assert not reader.ready(key(4))
    assert not reader.ready(key(3))
    assert reader.ready(key(4, context=1)), "other contexts keep theirs"
    assert float(reader.take(key(5))) == 1


def test_wait_returns_when_the_message_comes_and_counts_the_time(pair: list[LocalMailbox]) -> None:
    sender, reader = pair
    late = threading.Timer(0.05, sender.send, ([1], key(0), torch.ones(1)))
    late.start()
    reader.wait(key(0), timeout_s=10)
    assert float(reader.take(key(0))) == 1
    assert reader.wait_seconds > 0
    assert reader.waiting_for is None


def test_a_wait_that_is_too_long_says_for_what(pair: list[LocalMailbox]) -> None:
    with pytest.raises(TimeoutError, match=r"step=7.* within 0\.01 s"):
        pair[1].wait(key(7), timeout_s=0.01)
    assert pair[1].waiting_for == key(7)


def test_the_first_failure_reaches_all_who_wait(pair: list[LocalMailbox]) -> None:
    first = EngineError("first")
    failing = threading.Timer(0.05, pair[1].fail, (first,))
    failing.start()
    with pytest.raises(EngineError) as caught:
        pair[1].wait(key(0), timeout_s=10)
    assert caught.value is first
    pair[1].fail(EngineError("second"))
    assert pair[1].failure is first


class Everything(nn.Module):
    """Its first half makes tensors of every dtype and layout, its second reads them."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        made: list[torch.Tensor] = [
            x > 0, x.sum(), (x * 9).long(), (x * 9).int(), x.bfloat16() * 3, x.half() * 3, x.double() / 3,
            (x * 9).to(torch.int8), (x.abs() * 9).to(torch.uint8), x.transpose(0, 1) + 1,
            (x[None, :, :, None] + 1).contiguous(memory_format=torch.channels_last), (x[:1] + 1).expand(4, 6),
            torch.complex(x, x + 1), x[:, ::2] + 0, (x * 2).chunk(2, dim=1)[1],
            (x[0, 0] + 1).expand(2)[:1],  # one element of stride 0, as half a batch of timesteps is
        ]  # fmt: skip
        total = x * 0
        for tensor in made:
            real = tensor.real * 1 if tensor.is_complex() else tensor * 1
            total = total + real.float().mean().nan_to_num() + real.float().sum()
        return (total,)


@pytest.mark.processes
@pytest.mark.filterwarnings("ignore:Casting complex")
def test_every_dtype_and_layout_arrives_as_it_was_sent() -> None:
    module = Everything().eval()
    graph = partitioner.trace(module, {"x": torch.zeros(4, 6)}, {"x": "latent"}, model="everything")
    nodes = [node.name for node in graph.latent_nodes]
    middle = next(node.name for node in graph.latent_nodes if node.target == "aten.mul.Tensor" and node.args[1] == 0)
    cut = nodes.index(middle)
    plan = plan_of(graph, {name: int(index >= cut) for index, name in enumerate(nodes)}, warmup=2)
    dtypes = {boundary.dtype for boundary in plan.boundaries}
    assert dtypes >= {
        "bool", "int64", "int32", "int8", "uint8", "bfloat16", "float16", "float64", "float32", "complex64",
    }  # fmt: skip
    inputs = [torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(5)]
    got: dict[str, Any] = {}
    for transport in ("processes", "emulation"):
        with Engine(module, plan, EngineOptions(transport=transport, predictor="linear")) as engine:
            got[transport] = [engine(x)[0] for x in inputs]
    assert equal(got["processes"], got["emulation"])
    assert equal(got["processes"][:2], [module(x)[0] for x in inputs[:2]])
