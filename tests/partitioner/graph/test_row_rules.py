"""Operators that have a rule, called on rows: what is said of the rows is what a changed row shows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from partitioner.graph.export import trace
from partitioner.graph.operator_classes import operator_name
from partitioner.graph.row_flow import RowFlow
from tests.support.random_modules import keeps_apart

Change = Callable[[torch.Tensor], torch.Tensor]


class OneCall(nn.Module):
    """Does one thing to what it is given."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change = change
        self.latent = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.change(x)


def whole(x: torch.Tensor, most: int) -> torch.Tensor:
    """Whole numbers up to one, of the tensor."""
    return (x.abs() * 10).long() % most


def images(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(2, (2, 4)).transpose(1, 2)  # rows, 2, 6, 4


CASES: dict[str, list[Change]] = {
    "linear": [
        lambda x: functional.linear(x, torch.ones(3, 8), torch.ones(3)),
        lambda x: functional.linear(x, torch.ones(8)),
    ],
    "matmul": [lambda x: x @ x.transpose(1, 2), lambda x: torch.ones(4, 4) @ x.flatten(1), lambda x: x @ torch.ones(8)],
    "mm": [lambda x: torch.mm(x.flatten(1), torch.ones(48, 2)), lambda x: torch.mm(torch.ones(4, 4), x[:, 0])],
    "bmm": [lambda x: torch.bmm(x, x.transpose(1, 2))],
    "mv": [lambda x: torch.mv(x.flatten(1), torch.ones(48))],
    "addmm": [lambda x: torch.addmm(torch.ones(2), x.flatten(1), torch.ones(48, 2))],
    "baddbmm": [lambda x: torch.baddbmm(torch.ones(4, 6, 6), x, x.transpose(1, 2))],
    "outer": [lambda x: torch.outer(x[:, 0, 0], torch.ones(3)), lambda x: torch.outer(x[:, 0, 0], x[:, 0, 0])],
    "einsum": [
        lambda x: torch.einsum("bij,bkj->bik", x, x),
        lambda x: torch.einsum("bij,ckj->bik", x, x),
        lambda x: torch.einsum("...ij,jk", x, torch.ones(8, 8)),
    ],
    "layer_norm": [lambda x: functional.layer_norm(x, (8,)), lambda x: functional.layer_norm(x, (4, 6, 8))],
    "rms_norm": [lambda x: functional.rms_norm(x, (6, 8), torch.ones(6, 8))],
    "batch_norm": [
        lambda x: functional.batch_norm(x, torch.ones(6), torch.ones(6)),
        lambda x: functional.batch_norm(x, None, None, training=True),
    ],
    "instance_norm": [
        lambda x: functional.instance_norm(x),
        lambda x: functional.instance_norm(x.transpose(0, 1)).transpose(0, 1),
    ],
    "group_norm": [lambda x: functional.group_norm(x, 2)],
    "t": [lambda x: x[:, 0].t().cos().t()],
    "permute": [lambda x: x.permute(2, 0, 1).cos().permute(1, 2, 0)],
    "transpose": [lambda x: x.transpose(0, 1).cos().transpose(0, 1), lambda x: x[:, :4].transpose(0, 1)],
    "swapaxes": [lambda x: x.swapaxes(0, 1).cos().swapaxes(0, 1)],
    "swapdims": [lambda x: x.swapdims(0, 1).cos().swapdims(0, 1)],
    "movedim": [lambda x: x.movedim(0, 2).cos().movedim((2, 0), (0, 1))],
    "numpy_T": [lambda x: x[:, 0].T.cos().T],
    "mT": [lambda x: x.mT, lambda x: x[:, 0].mT.cos().mT],
    "mH": [lambda x: x.mH],
    "pad": [lambda x: functional.pad(x, (1, 0)), lambda x: functional.pad(x, (0, 0, 0, 0, 1, 1))],
    "constant_pad_nd": [lambda x: torch.constant_pad_nd(x, (1, 0))],
    "embedding": [lambda x: functional.embedding(whole(x, 5), torch.arange(15.0).view(5, 3))],
    "gather": [
        lambda x: x.gather(1, whole(x, 6)),
        lambda x: x.gather(0, whole(x, 4)),
        lambda x: x.gather(1, torch.zeros(2, 2, 2).long()),
    ],
    "take_along_dim": [
        lambda x: torch.take_along_dim(x, whole(x, 6), 1),
        lambda x: torch.take_along_dim(x, whole(x, 4), 0),
        lambda x: torch.take_along_dim(x, whole(x[:, 0, 0], 192)),
        lambda x: torch.take_along_dim(x, torch.zeros(1, 2, 8).long(), 1),
    ],
    "scatter": [
        lambda x: torch.zeros(4, 6, 8).scatter(1, whole(x, 6), x),
        lambda x: x.scatter(0, torch.zeros(1, 6, 8).long(), 1.0),
    ],
    "scatter_add": [lambda x: torch.zeros(4, 6, 8).scatter_add(1, whole(x, 6), x)],
    "index": [
        lambda x: x[:, torch.tensor([0, 2, 1])],
        lambda x: x[whole(x[:, 0, 0], 4)],
        lambda x: x[torch.arange(4), whole(x[:, 0, 0], 6)],
    ],
    "index_put": [
        lambda x: x.index_put((torch.arange(4), whole(x[:, 0, 0], 6)), torch.ones(8)),
        lambda x: x.index_put((x > 0,), torch.zeros(())),
    ],
    "index_copy": [
        lambda x: x.index_copy(1, torch.tensor([0, 2]), torch.ones(4, 2, 8)),
        lambda x: x.index_copy(0, torch.tensor([0, 2]), torch.ones(2, 6, 8)),
    ],
    "index_add": [
        lambda x: x.index_add(1, torch.tensor([0, 2]), torch.ones(4, 2, 8)),
        lambda x: x.index_add(0, torch.tensor([0, 2]), torch.ones(2, 6, 8)),
    ],
    "index_fill": [
        lambda x: x.index_fill(1, torch.tensor([0, 2]), 1.0),
        lambda x: x.index_fill(0, torch.tensor([0, 2]), 1.0),
    ],
    "index_select": [
        lambda x: x.index_select(1, whole(torch.ones(3), 6)),
        lambda x: x.index_select(0, whole(x[:, 0, 0], 4)),
    ],
    "meshgrid": [
        lambda x: torch.meshgrid(x[:, 0, 0], torch.ones(3), indexing="ij")[0],
        lambda x: torch.meshgrid(torch.ones(3), x[:, 0, 0], indexing="xy")[1],
    ],
    "grid_sampler": [lambda x: functional.grid_sample(images(x), torch.zeros(4, 3, 3, 2), align_corners=False)],
    "unfold": [lambda x: x.unfold(1, 2, 2), lambda x: x.unfold(0, 2, 1)],
    "diag_embed": [lambda x: torch.diag_embed(x)],
    "diagonal": [lambda x: x.diagonal(dim1=1, dim2=2), lambda x: x.diagonal()],
    "one_hot": [lambda x: functional.one_hot(whole(x, 5), 5)],
    "view_as_real": [lambda x: torch.view_as_real(torch.complex(x, x))],
    "view_as_complex": [lambda x: torch.view_as_complex(x.unflatten(2, (4, 2))).abs()],
    "bucketize": [lambda x: torch.bucketize(x, torch.tensor([0.0, 1.0]))],
    "pixel_shuffle": [lambda x: functional.pixel_shuffle(x.reshape(4, 8, 3, 2), 2)],
    "pixel_unshuffle": [lambda x: functional.pixel_unshuffle(images(x), 2)],
    "tril": [lambda x: x.tril(), lambda x: x[:, 0].tril()],
    "triu": [lambda x: x.triu()],
    "topk": [lambda x: x.topk(3, 1)[0], lambda x: x.topk(4, 0)[0]],
    "fft_fftshift": [lambda x: torch.fft.fftshift(x, dim=(1, 2)), lambda x: torch.fft.fftshift(x)],
    "fft_ifftshift": [lambda x: torch.fft.ifftshift(x, dim=(1,))],
    "glu": [lambda x: functional.glu(x), lambda x: functional.glu(x, 0)],
    "type_as": [lambda x: torch.ones(()).long().type_as(x) * x],
    "expand_as": [lambda x: x[:, :1].expand_as(x)],
    "cross": [lambda x: torch.cross(x[:, :3], x[:, 1:4], dim=1)],
    "linalg_cross": [lambda x: torch.linalg.cross(x[:, :3], x[:, 1:4], dim=1)],
    "linalg_vector_norm": [lambda x: torch.linalg.vector_norm(x, dim=1), lambda x: x / torch.linalg.vector_norm(x)],
    "conv1d": [lambda x: functional.conv1d(x, torch.ones(2, 6, 3))],
    "conv2d": [lambda x: functional.conv2d(images(x), torch.ones(2, 2, 3, 3), torch.ones(2))],
    "conv_transpose2d": [lambda x: functional.conv_transpose2d(images(x), torch.ones(2, 2, 3, 3))],
    "scaled_dot_product_attention": [
        lambda x: functional.scaled_dot_product_attention(x, x, x, torch.ones(6, 6)),
        lambda x: functional.scaled_dot_product_attention(
            x.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1)
        ).transpose(0, 1),
    ],
    "softmax": [lambda x: x.softmax(2), lambda x: x.softmax(0)],
    "log_softmax": [lambda x: x.log_softmax(1)],
    "cumsum": [lambda x: x.cumsum(1), lambda x: x.cumsum(0)],
    "cumprod": [lambda x: x.cumprod(1)],
    "sort": [lambda x: x.sort(1)[0], lambda x: x.sort(0)[0]],
    "argsort": [lambda x: x.argsort(1)],
    **{
        name: [lambda x, name=name: getattr(torch, name)(x, dim=1)]
        for name in (
            "mean",
            "sum",
            "amax",
            "amin",
            "prod",
            "std",
            "var",
            "any",
            "all",
            "argmax",
            "argmin",
            "logsumexp",
            "count_nonzero",
            "nansum",
            "nanmean",
        )
    },
    **{
        name: [
            lambda x, name=name: getattr(torch, name)(x, dim=1)[0],
            lambda x, name=name: getattr(torch, name)(x, dim=0)[0],
        ]
        for name in ("max", "min", "median", "std_mean", "var_mean")
    },
    "aminmax": [lambda x: torch.aminmax(x, dim=1)[0], lambda x: x + torch.aminmax(x)[0]],
    **{name: [lambda x, name=name: x * getattr(torch, name)(x)] for name in ("zeros_like", "ones_like")},
    "full_like": [lambda x: x * torch.full_like(x, 2)],
    "new_zeros": [lambda x: x * x.new_zeros(4, 1, 1)],
    "new_ones": [lambda x: x * x.new_ones(4, 1, 1)],
    "new_full": [lambda x: x * x.new_full((4, 1, 1), 2)],
    "zeros": [lambda x: x * torch.zeros(4, 1, 1)],
    "ones": [lambda x: x * torch.ones(4, 1, 1)],
    "full": [lambda x: x * torch.full((4, 1, 1), 2)],
    "scalar_tensor": [lambda x: x * torch.scalar_tensor(2)],
    "adaptive_avg_pool2d": [lambda x: functional.adaptive_avg_pool2d(images(x), 2)],
    "avg_pool2d": [lambda x: functional.avg_pool2d(images(x), 2), lambda x: functional.avg_pool2d(images(x)[:, 0], 2)],
    "max_pool2d": [lambda x: functional.max_pool2d(images(x), 2)],
    "adaptive_max_pool2d": [lambda x: functional.adaptive_max_pool2d(images(x), 2)],
    "upsample_nearest2d": [lambda x: functional.interpolate(images(x), scale_factor=2)],
    "upsample_bilinear2d": [lambda x: functional.interpolate(images(x), (3, 3), mode="bilinear")],
    "fft_fft2": [lambda x: torch.fft.fft2(x).real],
    "fft_fftn": [lambda x: torch.fft.fftn(x).real, lambda x: torch.fft.fftn(x, dim=(1, 2)).real],
    "fft_rfft": [lambda x: torch.fft.rfft(x).real],
    "fft_irfft": [lambda x: torch.fft.irfft(torch.complex(x, x))],
    "fft_ifft": [lambda x: torch.fft.ifft(x, dim=0).real],
    "where": [
        lambda x: torch.where(x > 0, x, torch.zeros(())),
        lambda x: torch.where(torch.arange(4)[:, None, None] > 1, x, -x),
    ],
    "slice": [lambda x: x[:, 1:5:2], lambda x: x[1:]],
    "select": [lambda x: x[:, 0]],
    "narrow": [lambda x: x.narrow(1, 2, 2)],
    "chunk": [lambda x: x.chunk(2, 1)[0], lambda x: torch.cat(x.chunk(2))],
    "split": [lambda x: x.split(4, 1)[1]],
    "split_with_sizes": [lambda x: x.split([2, 4], 1)[1]],
    "tensor_split": [lambda x: x.tensor_split(4, 1)[3]],
    "unbind": [lambda x: torch.stack(x.unbind(0))],
    "flip": [lambda x: x.flip(1, 2)],
    "roll": [lambda x: x.roll(1, 1), lambda x: x.roll((1, 2), (1, 0)), lambda x: x.roll(1)],
    "repeat_interleave": [lambda x: x.repeat_interleave(2, 1), lambda x: x.repeat_interleave(2, 0)],
    "repeat": [lambda x: x.repeat(1, 2, 1), lambda x: x.repeat(2, 1, 1, 1).transpose(0, 1)],
    "tile": [lambda x: x.tile(2, 1)],
    "unsafe_chunk": [lambda x: torch.unsafe_chunk(x, 2, 1)[0]],
    "unsafe_split": [lambda x: torch.unsafe_split(x, 3, 1)[0]],
    "view": [lambda x: x.view(-1, 8)],
    "flatten": [lambda x: x.flatten()],
    "unflatten": [lambda x: x.unflatten(0, (2, 2))],
    "squeeze": [lambda x: x[:, :1].squeeze(1)],
    "unsqueeze": [lambda x: x.unsqueeze(1)],
    "view_as": [lambda x: x.view_as(torch.zeros(4, 48))],
    "reshape_as": [lambda x: x.reshape_as(torch.zeros(4, 48))],
    "ravel": [lambda x: x.ravel()],
    "cat": [lambda x: torch.cat([x, x], 1)],
    "concat": [lambda x: torch.concat([x, x], 1)],
    "stack": [lambda x: torch.stack([x, x], 1)],
}

# Of these it is not always seen that rows stay apart: by which number a row is taken, or that only some are changed.
NOT_ALWAYS_SEEN = {"index", "index_put", "index_copy", "index_add", "index_fill"}


@pytest.mark.parametrize("name", CASES)
def test_an_operator_keeps_rows_apart_where_its_rule_says_so(name: str) -> None:
    for change in CASES[name]:
        module = OneCall(change).eval()
        graph = trace(module, {"x": module.latent}, {"x": "latent"})
        assert name in {operator_name(node.target) for node in graph.nodes}
        flow = RowFlow(graph, ["x"], 4)
        for parts in (2, 4):
            apart = keeps_apart(module, parts)
            said = flow.fault(parts) is None
            assert said == apart or (apart and name in NOT_ALWAYS_SEEN)
