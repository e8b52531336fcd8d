"""RowFlow: what it says of a graph's rows is what happens when a row is changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from partitioner.graph.export import trace
from partitioner.graph.row_flow import RowFlow
from partitioner.graph.row_values import MIXED, UNKNOWN, UNLIKE
from tests.support.random_modules import RandomModule, keeps_apart

Change = Callable[[torch.Tensor], torch.Tensor]


class Block(nn.Module):
    """A layer of attention and one that is fully connected, with something done in between."""

    def __init__(self, change: Change, rows: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.change = change
        self.into, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.latent = torch.randn(rows, 5, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.into(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        x = x + functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out(self.change(x))


def flow_of(module: RandomModule | Block) -> RowFlow:
    return RowFlow(trace(module.eval(), {"x": module.latent}, {"x": "latent"}), ["x"], len(module.latent))


def first_frame(x: torch.Tensor) -> torch.Tensor:
    """Attention of each frame to the first of its half."""
    key = x.reshape(2, -1, *x.shape[1:])[:, [0] * (len(x) // 2)].flatten(0, 1)
    return functional.scaled_dot_product_attention(x, key, key)


def joined_tokens(x: torch.Tensor) -> torch.Tensor:
    """Attention of the tokens of a half's images to one another."""
    tokens = x.reshape(2, -1, x.shape[-1])
    return functional.scaled_dot_product_attention(tokens, tokens, tokens).reshape(x.shape)


def style_of_first(x: torch.Tensor) -> torch.Tensor:
    """The first image of each half lends all of them its mean."""
    half = len(x) // 2
    style = torch.stack((x[0], x[half])).unsqueeze(1).expand(2, half, *x.shape[1:]).reshape(x.shape)
    return x - x.mean(1, keepdim=True) + style.mean(1, keepdim=True)


def sliced(size: int) -> Change:
    def change(x: torch.Tensor) -> torch.Tensor:
        made = torch.zeros_like(x)
        for start in range(0, len(x), size):
            made[start : start + size] = x[start : start + size].softmax(-1)
        return made

    return change


def perturbed(x: torch.Tensor) -> torch.Tensor:
    """The second half goes without a layer, as in perturbed-attention guidance."""
    first, second = x.chunk(2)
    return torch.cat([first.softmax(-1), second])


CHANGES: dict[str, tuple[Change, int, str]] = {  # what is done between two layers, parts that 4 rows fall into, why
    "nothing": (lambda x: x, 4, ""),
    "folded and unfolded": (lambda x: x.reshape(-1, 8).sin().reshape(-1, 5, 8), 4, ""),
    "rows last": (lambda x: x.permute(1, 2, 0).exp().permute(2, 0, 1), 4, ""),
    "one row after the other": (lambda x: torch.stack([row.softmax(0) for row in x]), 4, ""),
    "written row by row": (sliced(1), 4, ""),
    "in blocks of two": (sliced(2), 4, ""),
    "repeated and averaged": (lambda x: x.repeat_interleave(3, 0).unflatten(0, (-1, 3)).mean(1), 4, ""),
    "mean over the batch": (lambda x: x - x.mean(0, keepdim=True), 1, MIXED),
    "reshape (2, -1)": (lambda x: x.reshape(2, -1).softmax(-1).reshape(x.shape), 2, MIXED),
    "first frame of a half": (first_frame, 2, MIXED),
    "tokens of a half": (joined_tokens, 2, MIXED),
    "style of the first of a half": (style_of_first, 2, MIXED),
    "roll": (lambda x: x + x.roll(1, 0), 1, MIXED),
    "first row for all": (lambda x: x + x[0:1], 1, MIXED),
    "first half for both": (lambda x: x + x.chunk(2)[0].repeat(2, 1, 1), 1, MIXED),
    "flip": (lambda x: x.flip(0), 1, MIXED),
    "every other row": (lambda x: torch.cat([x[1::2], x[::2]]), 1, MIXED),
    "batch norm of the batch": (
        lambda x: functional.batch_norm(x.transpose(1, 2), None, None, training=True).transpose(1, 2), 1, MIXED,
    ),
    "group norm of all rows": (lambda x: functional.group_norm(x.reshape(1, -1, 8), 1).reshape(x.shape), 1, MIXED),
    "perturbed attention": (perturbed, 1, UNLIKE),
    "numbered rows": (lambda x: x + torch.arange(len(x)).reshape(-1, 1, 1), 1, UNLIKE),
    "sorted": (lambda x: x.cummax(0).values, 1, UNKNOWN),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_rows_fall_into_the_parts_that_a_changed_row_shows(name: str) -> None:
    change, parts, what = CHANGES[name]
    module = Block(change, 4).eval()
    flow = flow_of(module)
    assert flow.parts == parts
    for count in (2, 4):
        assert keeps_apart(module, count) == (count <= parts)  # the truth
        fault = flow.fault(count)
        assert (fault is None) == (count <= parts)
        assert fault is None or fault.key in {node.key for node in flow.graph.nodes}
    if parts < 4:
        fault = flow.fault(4)
        assert fault is not None
        assert fault.what in (what, UNKNOWN)  # reshape cuts 4 rows in two
        assert flow.fault(2) is None or flow.fault(2).what == what  # type: ignore[union-attr]


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(k, marks=pytest.mark.slow) for k in range(8, 60))])
def test_random_modules_mix_no_rows_that_it_calls_apart(seed: int) -> None:
    module = RandomModule(seed, (4, 6, 2, 8)[seed % 4])
    rows = len(module.latent)
    flow = flow_of(module)
    for parts in range(2, rows + 1):
        if rows % parts == 0 and flow.fault(parts) is None:
            assert keeps_apart(module, parts)


@pytest.mark.slow
def test_most_random_modules_are_known() -> None:
    """What keeps rows apart is mostly seen to do so."""
    found = []
    for seed in range(40):
        module = RandomModule(seed, (4, 6, 2, 8)[seed % 4])
        if keeps_apart(module, 2):
            found.append(flow_of(module).fault(2) is None)
    assert len(found) > 10
    assert sum(found) > 0.8 * len(found)


class FirstIds(nn.Module):
    """Takes the positions of the first row for all, as Flux 2 does."""

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return x * ids[0].cos()


def test_inputs_must_be_alike_where_the_first_row_is_read_for_all() -> None:
    inputs = {"x": torch.zeros(4, 8), "ids": torch.zeros(4, 8)}
    graph = trace(FirstIds().eval(), inputs, {"x": "latent", "ids": "prompt"})
    division = RowFlow(graph, ["x", "ids"], 4).division(4)
    assert (division.fault, division.alike) == (None, ("ids",))
    assert RowFlow(graph, ["x"], 4).division(4).alike == ()
    graph = trace(FirstIds().eval(), inputs, {"x": "latent", "ids": "latent"})
    assert RowFlow(graph, ["x", "ids"], 4).parts == 1


def test_rows_divide_only_evenly() -> None:
    with pytest.raises(ValueError, match="4 rows cannot be divided into 3 equal parts"):
        flow_of(Block(lambda x: x, 4)).fault(3)
