"""The pattern of each operator that is known, by which rows are followed.

Operators that are told positions by a tensor are in ``row_index_rules``; those that only move positions of a dimension
(slices, chunks, repeats) in ``row_moves``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from partitioner.graph.nodes import Ref
from partitioner.graph.operator_classes import ATTENTION, CONV, CONV_TRANSPOSE
from partitioner.graph.row_call import NodeCall, OperandSlot
from partitioner.graph.row_index_rules import INDEX_RULES
from partitioner.graph.row_pattern import RowPattern, RowRule, aligned, all_but
from partitioner.graph.row_places import Extents


def patterns(call: NodeCall) -> list[RowPattern] | None:
    """A pattern for each output of a call; None where the operator is not known."""
    rule = _RULES.get(call.name)
    if rule is None and (call.name in _EACH or _pointwise(call.node.target)):
        rule = _each
    if rule is None:
        rule = next((rule for form, rule in _FORMS if form.fullmatch(call.name)), None)
    if rule is None and not call.operands:
        rule = _made
    if rule is None:
        return None
    found = rule(call)
    return found if isinstance(found, list) else [found] * len(call.outputs)


def _pointwise(target: str) -> bool:
    from partitioner.graph.operators import is_pointwise

    return is_pointwise(target)


def _each(call: NodeCall) -> RowPattern:
    """Element by element, with broadcasting."""
    ndim = len(call.outputs[0])
    return RowPattern({slot: aligned(shape, ndim) for slot, shape in call.shapes.items()})


def _first(call: NodeCall) -> RowPattern:
    """Element by element of operand 0; of others only shape or dtype count."""
    return RowPattern({0: aligned(call.shapes[0], len(call.outputs[0]))}, forms=True)


def _filled(call: NodeCall) -> RowPattern:
    return RowPattern({}, forms=True)


def _made(call: NodeCall) -> RowPattern:
    return RowPattern({}, frozenset(range(len(call.outputs[0]))))


def _within(call: NodeCall, dims: Sequence[int] | None, others: int | None = None) -> RowPattern:
    """What mixes positions of some dimensions of operand 0, and leaves the shape's others as they are.

    dims: None for all. others: where the one dimension of each further operand goes.
    """
    ndim = len(call.shapes[0])
    mixed = set(range(ndim)) if dims is None else {dim % max(1, ndim) for dim in dims}
    weights = {slot: [others] * len(shape) for slot, shape in _after_first(call)}
    return RowPattern({0: all_but(mixed, ndim), **weights}, frozenset(mixed))


def _after_first(call: NodeCall) -> list[tuple[OperandSlot, Extents]]:
    return [(slot, shape) for slot, shape in call.shapes.items() if slot != 0]


def _dims(value: Any) -> list[int] | None:
    """A "dim" argument as a list; None for all dimensions."""
    if value is None or isinstance(value, bool) or value == ():
        return None
    return list(value) if isinstance(value, tuple) else [value]


def _along(position: int, default: Any = -1) -> RowRule:
    return lambda call: _within(call, _dims(call.given(position, "dim", default)))


def _reduced(position: int) -> RowRule:
    """A reduction over the dimensions that the argument at that position names."""

    def rule(call: NodeCall) -> RowPattern:
        if isinstance(call.given(1, "dim"), Ref):
            return _each(call)  # max.other
        ndim, dims = len(call.shapes[0]), _dims(call.given(position, "dim"))
        gone = set(range(ndim)) if dims is None else {dim % max(1, ndim) for dim in dims}
        kept = [dim for dim in range(ndim) if dim not in gone]
        same = len(call.outputs[0]) == ndim  # keepdim
        where: dict[int, int] = {dim: dim if same else kept.index(dim) for dim in kept}
        return RowPattern({0: [where.get(dim) for dim in range(ndim)]})

    return rule


def _linear(call: NodeCall) -> RowPattern:
    last = len(call.outputs[0]) - 1
    weight = (last, None) if len(call.shapes[1]) == 2 else (None,)
    return RowPattern({0: [*range(len(call.shapes[0]) - 1), None], 1: weight, 2: (last,)})


def _product(first: int) -> RowRule:
    """A matrix product of the operands at ``first`` and the next position; others are added."""

    def rule(call: NodeCall) -> RowPattern:
        ndim, one, other = len(call.outputs[0]), call.shapes[first], call.shapes[first + 1]
        found: dict[OperandSlot, Sequence[int | None]] = {
            slot: aligned(shape, ndim) for slot, shape in call.shapes.items() if slot not in (first, first + 1)
        }
        left, right = len(one) > 1, len(other) > 1
        batch = ndim - left - right
        found[first] = [*aligned(one[:-2], batch), *([batch] if left else []), None]
        found[first + 1] = [*aligned(other[:-2], batch), None, *([ndim - 1] if right else [])]
        return RowPattern(found)

    return rule


def _outer(call: NodeCall) -> RowPattern:
    return RowPattern({0: (0,), 1: (1,)})


def _einsum(call: NodeCall) -> RowPattern:
    text = str(call.node.args[0]).replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if not arrow:
        once = sorted(c for c in set(left) - set(",.") if left.count(c) == 1)
        right = ("..." if "." in left else "") + "".join(once)
    spread = len(call.outputs[0]) - len(right.replace("...", ""))
    names = _letters(right, spread)
    found: dict[OperandSlot, Sequence[int | None]] = {}
    for index, term in enumerate(terms):
        shape = call.shapes[1, index]
        own = _letters(term, len(shape) - len(term.replace("...", "")))
        found[1, index] = [names.index(c) if c in names and own.count(c) == 1 else None for c in own]
    repeated = {names.index(c) for term in terms for c in names if term.count(c) > 1}
    return RowPattern(found, frozenset(repeated))


def _letters(term: str, spread: int) -> list[str]:
    """The dimensions of a term of an einsum, those of "..." numbered from the last."""
    front, dots, back = term.partition("...")
    return [*front, *([str(spread - i) for i in range(spread)] if dots else []), *back]


def _conv(call: NodeCall) -> RowPattern:
    """Convolutions and pools: the leading dimension is a batch's where there are enough dimensions."""
    ndim = len(call.shapes[0])
    batched = ndim == len(call.shapes[1])
    found: dict[OperandSlot, Sequence[int | None]] = {slot: [None] * len(shape) for slot, shape in call.shapes.items()}
    if batched:
        found[0] = [0, *[None] * (ndim - 1)]
    return RowPattern(found, frozenset(range(int(batched), ndim)))


def _leading(trailing: int) -> RowRule:
    return lambda call: _within(call, range(len(call.shapes[0]) - trailing, len(call.shapes[0])))


def _pool(call: NodeCall) -> RowPattern | list[RowPattern]:
    (dims,) = re.findall(r"\d", call.name)
    return _leading(int(dims))(call)


def _attention(call: NodeCall) -> RowPattern:
    ndim = len(call.outputs[0])
    batch, (query, key, value) = ndim - 2, (call.shapes[0], call.shapes[1], call.shapes[2])
    found: dict[OperandSlot, Sequence[int | None]] = {
        0: [*aligned(query[:-2], batch), ndim - 2, None],
        1: [*aligned(key[:-2], batch), None, None],
        2: [*aligned(value[:-2], batch), None, ndim - 1],
    }
    for slot, shape in call.shapes.items():
        if slot in (3, "attn_mask"):
            found[slot] = [*aligned(shape[:-2], batch), ndim - 2, None] if len(shape) > 1 else [None]
    return RowPattern(found)


def _normalised(call: NodeCall) -> RowPattern:
    ndim, count = len(call.shapes[0]), len(call.given(1, "normalized_shape"))
    return _within(call, range(ndim - count, ndim))


def _per_channel(call: NodeCall) -> RowPattern:
    """Batch norm, and instance norm by statistics that were kept."""
    if not call.given(5, "training"):
        ndim = len(call.shapes[0])
        return RowPattern({0: range(ndim), **{slot: (1,) for slot, _ in _after_first(call)}})
    return _within(call, range(2, len(call.shapes[0])) if call.name == "instance_norm" else None, others=1)


def _permuted(call: NodeCall) -> RowPattern:
    ndim = len(call.shapes[0])
    order = list(range(ndim))
    if call.name == "permute":
        order = [dim % ndim for dim in call.given(1, "dims")]
    elif call.name in ("transpose", "swapaxes", "swapdims"):
        one, other = (call.given(i, name) % ndim for i, name in ((1, "dim0"), (2, "dim1")))
        order[one], order[other] = other, one
    elif call.name in ("mT", "mH"):
        order[-2:] = order[:-3:-1]
    elif call.name == "movedim":
        source, target = (_dims(call.given(i, "")) or [] for i in (1, 2))
        moved = {to % ndim: of % ndim for of, to in zip(source, target, strict=True)}
        rest = iter(dim for dim in range(ndim) if dim not in moved.values())
        order = [moved[dim] if dim in moved else next(rest) for dim in range(ndim)]
    else:  # t, numpy_T
        order.reverse()
    return RowPattern({0: [order.index(dim) for dim in range(ndim)]})


def _padded(call: NodeCall) -> RowPattern:
    sizes, ndim = call.given(1, "pad"), len(call.shapes[0])
    return _within(call, [ndim - 1 - i // 2 for i, size in enumerate(sizes) if size])


def _crossed(call: NodeCall) -> RowPattern:
    ndim, shape = len(call.outputs[0]), call.outputs[0]
    first = shape.index(3) if call.name == "cross" else ndim - 1
    dim = call.given(2, "dim")
    dim = first if dim is None else dim % ndim
    dims = {slot: [None if d == dim else d for d in aligned(own, ndim)] for slot, own in call.shapes.items()}
    return RowPattern(dims, frozenset({dim}))


def _grid(call: NodeCall) -> list[RowPattern]:
    """meshgrid."""
    crossed = call.given(1, "indexing", "ij") == "xy"
    where = [1, 0, *range(2, len(call.outputs))] if crossed else list(range(len(call.outputs)))
    return [RowPattern({(0, k): [where[k]] * len(call.shapes[0, k])}) for k in range(len(call.outputs))]


def _window(call: NodeCall) -> RowPattern:
    """Tensor.unfold."""
    ndim = len(call.shapes[0])
    dim = int(call.given(1, "dimension")) % ndim
    return RowPattern({0: all_but({dim}, ndim)}, frozenset({dim, ndim}))


def _diagonal(call: NodeCall) -> RowPattern:
    ndim = len(call.shapes[0])
    gone = {int(call.given(2, "dim1", 0)) % ndim, int(call.given(3, "dim2", 1)) % ndim}
    left = iter(range(ndim))
    return RowPattern({0: [None if d in gone else next(left) for d in range(ndim)]}, frozenset({ndim - 2}))


def _spread(call: NodeCall) -> RowPattern:
    """diag_embed: the last dimension becomes two."""
    ndim = len(call.outputs[0])
    new = {int(call.given(2, "dim1", -2)) % ndim, int(call.given(3, "dim2", -1)) % ndim}
    rest = [d for d in range(ndim) if d not in new]
    return RowPattern({0: [*rest, None]}, frozenset(new))


def _more(call: NodeCall) -> RowPattern:
    """One more dimension behind the others."""
    ndim = len(call.shapes[0])
    return RowPattern({0: range(ndim)}, frozenset({ndim}))


def _fewer(call: NodeCall) -> RowPattern:
    """The last dimension becomes part of each element."""
    return RowPattern({0: [*range(len(call.shapes[0]) - 1), None]})


def _bucketed(call: NodeCall) -> RowPattern:
    return RowPattern({0: range(len(call.shapes[0])), 1: (None,)} if 0 in call.shapes else {1: (None,)})


_EACH = {
    "to", "contiguous", "_to_copy", "copy", "lift_fresh_copy", "detach", "alias", "float", "half", "bool",
    "dropout", "feature_dropout", "alpha_dropout", "polar", "complex", "real", "imag", "isnan", "floor_divide",
    "hardswish", "__and__", "__or__", "__xor__", "fill", "expand", "broadcast_to", "where", "log_sigmoid",
    "conj", "resolve_conj", "resolve_neg", "isfinite", "isinf", "true_divide", "greater", "less",
    "logical_not", "clip",
}  # fmt: skip
_RULES: dict[str, RowRule] = {
    **INDEX_RULES,
    "linear": _linear, "matmul": _product(0), "mm": _product(0), "bmm": _product(0), "mv": _product(0),
    "addmm": _product(1), "baddbmm": _product(1), "outer": _outer, "einsum": _einsum, "layer_norm": _normalised,
    "rms_norm": _normalised, "batch_norm": _per_channel, "instance_norm": _per_channel,
    "group_norm": lambda call: _within(call, range(1, len(call.shapes[0]))),
    "t": _permuted, "permute": _permuted, "transpose": _permuted, "swapaxes": _permuted, "swapdims": _permuted,
    "movedim": _permuted, "numpy_T": _permuted, "mT": _permuted, "mH": _permuted,
    "pad": _padded, "constant_pad_nd": _padded, "meshgrid": _grid, "unfold": _window, "diag_embed": _spread,
    "diagonal": _diagonal, "one_hot": _more, "view_as_real": _more, "view_as_complex": _fewer, "bucketize": _bucketed,
    "pixel_shuffle": _leading(3), "pixel_unshuffle": _leading(3), "tril": _leading(2), "triu": _leading(2),
    "topk": _along(2), "fft_fftshift": _along(1, None), "fft_ifftshift": _along(1, None), "glu": _along(1),
    "type_as": _first, "expand_as": _first, "cross": _crossed, "linalg_cross": _crossed,
    "linalg_vector_norm": _reduced(2), "norm": _reduced(2),
    **dict.fromkeys(CONV | CONV_TRANSPOSE, _conv), **dict.fromkeys(ATTENTION, _attention),
    **dict.fromkeys(("softmax", "log_softmax", "_softmax", "cumsum", "cumprod", "sort", "argsort"), _along(1)),
    **dict.fromkeys((
        "mean", "sum", "amax", "amin", "prod", "std", "var", "any", "all", "argmax", "argmin", "max", "min", "median",
        "logsumexp", "count_nonzero", "nansum", "nanmean", "std_mean", "var_mean", "aminmax",
    ), _reduced(1)),
    **dict.fromkeys((
        "zeros", "ones", "full", "empty", "zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones",
        "new_full", "new_empty", "empty_strided", "scalar_tensor", "zero",
    ), _filled),
}  # fmt: skip
_FORMS: list[tuple[re.Pattern[str], RowRule]] = [
    (re.compile(r"(adaptive_)?(avg|max)_pool\dd"), _pool),
    (re.compile(r"_?upsample_.*"), lambda call: _within(call, range(2, len(call.shapes[0])))),
    (re.compile(r"(reflection|replication)_pad\dd"), _padded),
    (re.compile(r"fft_i?r?fft2"), _along(2, (-2, -1))),
    (re.compile(r"fft_i?r?fftn"), _along(2, None)),
    (re.compile(r"fft_i?[rh]?fft"), _along(2, -1)),
]
