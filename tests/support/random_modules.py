"""Random small modules of operators that move, mix and compute with rows, and what is true of their rows."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

Step = Callable[[list[torch.Tensor]], torch.Tensor]
Change = Callable[[torch.Tensor], torch.Tensor]

Draw = Callable[[random.Random, list[torch.Tensor]], Step | None]


class RandomModule(nn.Module):
    """Makes one value after the other, each of some of those before it; returns the last."""

    def __init__(self, seed: int, rows: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        generator = torch.Generator().manual_seed(seed)
        shape = (rows, draw.choice([3, rows, 4]), draw.choice([4, 6, rows]))
        self.latent = torch.randn(shape, generator=generator)
        self.weight = nn.Parameter(torch.zeros(1))
        self.steps: list[Step] = []
        values = [self.latent]
        for _ in range(200):
            step = draw.choice(STEPS)(draw, values)
            if step is None:
                continue
            made = step(values)
            if not made.dim() or not 0 < made.numel() <= 4000 or made.dim() > 5:
                continue
            self.steps.append(step)
            values.append(made)
            if len(self.steps) > draw.randint(2, 9):
                break
        back = values[-1]
        if back.dim() and back.shape[0] != rows:  # rows first, if they are somewhere
            places = [dim for dim, size in enumerate(back.shape) if size % rows == 0]
            if places:
                dim = draw.choice(places)
                self.steps.append(lambda values: values[-1].transpose(0, dim))
                self.steps.append(lambda values: values[-1].reshape(rows, -1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = [x]
        for step in self.steps:
            values.append(step(values))
        return values[-1]


def keeps_apart(module: RandomModule, parts: int) -> bool:
    """Whether no part of the rows shows in another part of the output, and all parts are treated alike."""
    latent = module.latent
    with torch.no_grad():
        whole = module(latent)
        if not whole.dim() or whole.shape[0] % parts:
            return False
        pieces = whole.chunk(parts)
        for part in range(parts):
            other = latent.clone()
            size = len(latent) // parts
            other[part * size : (part + 1) * size] = torch.randn(
                (size, *latent.shape[1:]), generator=torch.Generator().manual_seed(part)
            )
            now = module(other).chunk(parts)
            if any(not torch.equal(now[i], pieces[i]) for i in range(parts) if i != part):
                return False
        turned = module(torch.cat([*latent.chunk(parts)[1:], latent.chunk(parts)[0]]))
        wanted = torch.cat([*pieces[1:], pieces[0]])
        return torch.allclose(turned.float(), wanted.float(), atol=1e-4, rtol=1e-3, equal_nan=True)


def _value(draw: random.Random, values: list[torch.Tensor]) -> int:
    return draw.choice([len(values) - 1] * 3 + list(range(len(values))))


def _on_one(make: Callable[[random.Random, torch.Tensor], Change | None]) -> Draw:
    def draw_step(draw: random.Random, values: list[torch.Tensor]) -> Step | None:
        at = _value(draw, values)
        change = make(draw, values[at])
        return None if change is None else lambda values: change(values[at])

    return draw_step


def _dim(draw: random.Random, value: torch.Tensor) -> int:
    return draw.randrange(value.dim())


def _linear(draw: random.Random, v: torch.Tensor) -> Change | None:
    weight = torch.randn(draw.choice([3, v.shape[-1]]), v.shape[-1], generator=torch.Generator().manual_seed(1))
    return lambda x: functional.linear(x, weight)


def _reshape(draw: random.Random, v: torch.Tensor) -> Change | None:
    factors = []
    for size in v.shape:
        divisor = draw.choice([d for d in range(1, size + 1) if size % d == 0])
        factors += draw.choice([[size], [divisor, size // divisor]])
    shape = [1]
    for factor in factors:
        if draw.random() < 0.5 or shape[-1] * factor > 64:
            shape.append(factor)
        else:
            shape[-1] *= factor
    if draw.random() < 0.15:
        shape = [draw.choice([2, v.shape[-1], v.shape[0]]), -1]
        if v.numel() % shape[0]:
            return None
    return lambda x: x.reshape(shape)


def _permute(draw: random.Random, v: torch.Tensor) -> Change | None:
    order = draw.sample(range(v.dim()), v.dim())
    return lambda x: x.permute(order)


def _slice(draw: random.Random, v: torch.Tensor) -> Change | None:
    dim = _dim(draw, v)
    size = v.shape[dim]
    start = draw.randrange(size)
    end, step = draw.randint(start + 1, size), draw.choice([1, 1, 2])
    at = (slice(None),) * dim + (slice(start, end, step),)
    return lambda x: x[at]


def _select(draw: random.Random, v: torch.Tensor) -> Change | None:
    dim = _dim(draw, v)
    index = draw.randrange(v.shape[dim])
    return lambda x: x.select(dim, index)


def _chunks(draw: random.Random, v: torch.Tensor) -> Change | None:
    """Chunks that are put together again, some changed or in another order."""
    dim = _dim(draw, v)
    count = draw.choice([2, 3, v.shape[dim]])
    kind = draw.choice(["same", "turned", "one", "alike"])
    join = draw.choice(["cat", "stack"])

    def change(x: torch.Tensor) -> torch.Tensor:
        pieces = list(x.chunk(count, dim))
        if kind == "turned":
            pieces = pieces[::-1]
        if kind == "one":
            pieces[0] = pieces[0] * 2
        if kind == "alike":
            pieces = [piece.sin() for piece in pieces]
        if join == "stack" and len({piece.shape for piece in pieces}) == 1:
            return torch.stack(pieces, dim)
        return torch.cat(pieces, dim)

    return change


def _lookup(draw: random.Random, v: torch.Tensor) -> Change | None:
    dim = _dim(draw, v)
    size = v.shape[dim]
    index = draw.choice([[0] * size, list(range(size)), list(range(size))[::-1], [0, *range(size)], [size - 1]])
    at = (slice(None),) * dim + (index,)
    return lambda x: x[at]


def _write(draw: random.Random, v: torch.Tensor) -> Change | None:
    dim = _dim(draw, v)
    index = draw.randrange(v.shape[dim])
    narrow = draw.randint(index + 1, v.shape[dim])
    at = (slice(None),) * dim + (draw.choice([index, slice(index, narrow)]),)
    kind = draw.choice(["zeros", "clone", "fill", "add"])

    def change(x: torch.Tensor) -> torch.Tensor:
        made = torch.zeros_like(x) if kind == "zeros" else x.clone()
        if kind == "fill":
            made[at] = 0.5
        elif kind == "add":
            made[at] += x[at]
        else:
            made[at] = x[at].sin()
        return made

    return change


def _write_all(draw: random.Random, v: torch.Tensor) -> Change | None:
    """Block after block of a dimension, as sliced attention does."""
    dim = _dim(draw, v)
    size = v.shape[dim]
    block = draw.choice([d for d in range(1, size + 1) if size % d == 0])

    def change(x: torch.Tensor) -> torch.Tensor:
        made = torch.zeros_like(x)
        for start in range(0, size, block):
            at = (slice(None),) * dim + (slice(start, start + block),)
            made[at] = x[at].softmax(-1)
        return made

    return change


def _attention(draw: random.Random, v: torch.Tensor) -> Change | None:
    if v.dim() not in (3, 4):
        return None
    shared = draw.random() < 0.3

    def change(x: torch.Tensor) -> torch.Tensor:
        key = x[:1].expand(x.shape) if shared else x
        return functional.scaled_dot_product_attention(x, key, key)

    return change


def _constant(draw: random.Random, v: torch.Tensor) -> Change | None:
    """A tensor that the module makes itself, of numbers or all alike."""
    ones = (1,) * (v.dim() - 1)
    size = v.shape[0]
    return draw.choice([
        lambda x: x * torch.arange(x.shape[-1]),
        lambda x: x * torch.full((size, *ones), 0.25),
        lambda x: x + torch.arange(x.shape[-1]).expand(x.shape).clone(),
        lambda x: x + torch.arange(size).reshape(-1, *ones),
    ])  # fmt: skip


def _on_dim(*makers: Callable[[torch.Tensor, int], torch.Tensor]) -> Callable[[random.Random, torch.Tensor], Change]:
    def make(draw: random.Random, v: torch.Tensor) -> Change:
        dim = _dim(draw, v)
        change = draw.choice(makers)
        return lambda x: change(x, dim)

    return make


def _pair(draw: random.Random, values: list[torch.Tensor]) -> Step | None:
    """Two values: added, multiplied, put together, or one chosen by the other."""
    one, other = _value(draw, values), draw.randrange(len(values))
    kind = draw.choice(["add", "matmul", "cat", "where", "product", "outer"])

    def step(values: list[torch.Tensor]) -> torch.Tensor:
        a, b = values[one], values[other]
        if kind == "cat":
            return torch.cat([a, b], cat_dim)
        if kind == "matmul":
            return a @ b.transpose(-1, -2)
        if kind == "where":
            return torch.where(a > 0, a, b)
        if kind == "outer":
            return a.unsqueeze(-1) * b.unsqueeze(-2)
        return a + b if kind == "add" else a * b.sigmoid()

    cat_dim = draw.randrange(max(1, values[one].dim()))
    try:
        step(values)
    except RuntimeError:
        return None
    except IndexError:
        return None
    return step


STEPS: list[Draw] = [
    *map(_on_one, [_linear, _reshape, _reshape, _permute, _slice, _select, _chunks, _lookup, _write, _attention]),
    *map(_on_one, [_constant, _write_all]),
    _on_one(_on_dim(
        lambda x, d: x.softmax(d), lambda x, d: x.mean(d, keepdim=True), lambda x, d: x.sum(d),
        lambda x, d: x.cumsum(d),
        lambda x, d: x.flip(d), lambda x, d: x.roll(1, d), lambda x, d: x.repeat_interleave(2, d),
        lambda x, d: x.repeat(*[2 if i == d else 1 for i in range(x.dim())]), lambda x, d: x.unsqueeze(d),
        lambda x, d: x.unsqueeze(d).expand(*x.shape[:d], 2, *x.shape[d:]), lambda x, d: x.narrow(d, 0, 1),
        lambda x, d: torch.stack([x, x * 2], d), lambda x, d: x.amax(d, keepdim=True).expand_as(x),
        lambda x, d: torch.stack([(row - row.mean()).cos() for row in x.unbind(d)], d),
        lambda x, d: x.argsort(d).float(), lambda x, d: x.flatten(d) if d < x.dim() else x,
        lambda x, d: functional.layer_norm(x, x.shape[d:]), lambda x, d: torch.cat([x[:1], x[1:]]),
        lambda x, d: x.transpose(0, d), lambda x, d: torch.gather(x, d, torch.zeros_like(x, dtype=torch.int64)),
    )),
    _pair,
]  # fmt: skip
