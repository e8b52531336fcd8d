"""inline_regions: higher-order operators that only group operators, put back into the graph that they were taken from.

torch.export makes such groups of what a forward does under torch.autocast or torch.set_grad_enabled.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from partitioner.errors import TraceError
from partitioner.graph.modules import caller
from partitioner.graph.torch_private.schemas import aliased_argument, is_mutated_argument

# Name of the operator -> how many of its arguments stand before the group's own: the graph, and then what it reads.
_GROUPS = {"wrap_with_autocast": 4, "wrap_with_set_grad_enabled": 1}
_HALF = (torch.float16, torch.bfloat16)


def inline_regions(module: fx.GraphModule, model: str) -> None:
    """Put the operators of each group, and of groups in it, in its place.

    Args:
        module: What torch.export gave; changed.
        model: What errors call the denoiser.

    Raises:
        TraceError: A group is run under an autocast that casts; its casts depend on the device.
    """
    for node in list(module.graph.nodes):
        first = _GROUPS.get(getattr(node.target, "__name__", "")) if node.op == "call_function" else None
        if first is not None:
            group = getattr(module, node.args[first].target)
            inline_regions(group, model)
            if first == _GROUPS["wrap_with_autocast"]:
                _check_casts(node, group, model)
            _inline(node, group, node.args[first + 1 :])


def _check_casts(node: fx.Node, group: fx.GraphModule, model: str) -> None:
    device, dtype, enabled = node.args[:3]
    # what a cpu ignores, a GPU casts to float32
    ignored = dtype is torch.float32 and any(_computes_with_half(inner) for inner in group.graph.nodes)
    if enabled or ignored:
        raise TraceError(
            f"{model}: {caller(node)} runs operators under torch.autocast({device!r}, "
            f"{dtype}), whose casts depend on the device that they run on: cast with .to(), or leave autocast out of "
            "its forward and load the denoiser in that dtype"
        )


def _computes_with_half(node: fx.Node) -> bool:
    """Whether a node reads half precision and is no view or cast, which an autocast lets be."""
    if node.op != "call_function" or node.meta.get("val") is None:  # which a check of a dtype gives
        return False
    source = aliased_argument(node.target)
    if source is not None and not is_mutated_argument(node.target, source):
        return False
    read = (other.meta.get("val") for other in node.all_input_nodes)
    return any(isinstance(value, torch.Tensor) and value.dtype in _HALF for value in read)


def _inline(node: fx.Node, group: fx.GraphModule, reads: Any) -> None:
    graph = node.graph
    given = iter(reads)
    values: dict[fx.Node, Any] = {}
    with graph.inserting_before(node):
        for inner in group.graph.nodes:
            if inner.op == "placeholder":
                values[inner] = next(given)
            elif inner.op == "output":
                results = fx.map_arg(inner.args[0], values.__getitem__)
            else:
                values[inner] = graph.node_copy(inner, values.__getitem__)
    for user in list(node.users):  # it makes a tuple, of which each user takes an item
        user.replace_all_uses_with(results[user.args[1]])
        graph.erase_node(user)
    graph.erase_node(node)
