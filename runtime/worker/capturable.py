"""obstacle: why the nodes of a segment cannot be captured as a CUDA graph, found by running them once and watching.

During a capture nothing may wait for the GPU, and a replay repeats kernels only: what the host does between them, with
values or with memory that is not the graph's, happens once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from partitioner.graph.torch_private.dispatch import TorchDispatchMode
from partitioner.graph.torch_private.schemas import OpOverload, is_mutated_argument
from partitioner.graph.torch_private.trees import tree_leaves

_MASKS = {torch.bool, torch.uint8}


def obstacle(module: fx.GraphModule, inputs: Sequence[Any], device: torch.device) -> tuple[str, str] | None:
    """What keeps a module from being captured; runs it.

    Args:
        module: of a segment.
        inputs: of a call.
        device: where it is to be captured.

    Returns:
        The name of the node in the module, "" where it is an input, and the reason as a sentence's end; None where
        nothing is in the way. What raises is for the call itself to say.
    """
    if any(tensor.device.type != device.type for tensor in _tensors(inputs)):
        return "", "an input is not on the GPU"
    walk = _Walk(module, {tensor.untyped_storage().data_ptr() for tensor in _tensors(inputs)}, device)
    try:
        walk.run(*inputs)
    except _Found as found:
        return walk.node, str(found)
    except Exception:
        return None
    return None


class _Found(Exception):
    """A reason was found."""


class _Walk(fx.Interpreter):
    """Runs a module node by node until one calls an operator that cannot be captured.

    Attributes:
        node: the name of the present one.
    """

    def __init__(self, module: fx.GraphModule, given: set[int], device: torch.device) -> None:
        super().__init__(module)
        self.extra_traceback = False  # it would add to what is raised here
        self.node = ""
        self._watch = _Watch(given, device)

    def run_node(self, n: fx.Node) -> Any:
        self.node = n.name
        with self._watch:
            return super().run_node(n)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises _Found at an operator that cannot be captured. given: where the memory of the inputs begins."""

    def __init__(self, given: set[int], device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._given = given
        self._device = device

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        read = _tensors([args, dict(kwargs or {})])
        if isinstance(func, OpOverload) and any(tensor.device.type == self._device.type for tensor in read):
            if torch.Tag.data_dependent_output in func.tags:
                raise _Found(f"{func} has the host wait for a value")
            if _size_depends_on_values(func, args):
                raise _Found(f"{func} makes a tensor whose size only its values tell, for which the host waits")
            for position, value in enumerate(args):
                if is_mutated_argument(func, position) and any(
                    tensor.untyped_storage().data_ptr() in self._given for tensor in _tensors([value])
                ):
                    raise _Found(f"{func} writes to an input")
        made = func(*args, **(kwargs or {}))
        # a single number may be read from the CPU
        places = {tensor.device.type for tensor in read if tensor.dim() > 0 or tensor.device.type == self._device.type}
        # attention makes, beside its result on the GPU, the state of its random numbers, outside of captures on the CPU
        made_in = {tensor.device.type for tensor in _tensors([made])}
        places |= made_in & {self._device.type} or made_in
        if self._device.type in places and len(places) > 1:
            raise _Found(f"{func} moves values between the GPU and {', '.join(sorted(places - {self._device.type}))}")
        return made


def _size_depends_on_values(func: OpOverload, args: Sequence[Any]) -> bool:
    """Whether an operator's output has as many elements as its inputs' values say: indexing has for masks only."""
    indices = [item for value in args if isinstance(value, (list, tuple)) for item in _tensors([value])]
    if any(tensor.dtype in _MASKS for tensor in indices) and func._schema.name.startswith("aten::index"):
        return True
    return torch.Tag.dynamic_output_shape in func.tags and not func._schema.name.startswith("aten::index")


def _tensors(values: Sequence[Any]) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(list(values)) if isinstance(leaf, torch.Tensor)]
