"""PromptInputs: the conditions that the calls of one trajectory carry."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Role
from runtime.driver.call_arguments import Tensors
from runtime.driver.readback import Readback, is_late

_LOGGER = logging.getLogger("runtime")


@dataclass(frozen=True)
class _Seen:
    """A prompt input as it was last seen: the caller's tensor, its version then, and a copy of what it held."""

    tensor: torch.Tensor
    version: int
    copy: torch.Tensor


class PromptInputs:
    """The prompt inputs of a trajectory's calls, by value.

    Values are compared, since a write through ``.data`` or numpy raises no version. On a GPU that would be to wait:
    there the caller's same tensor, not written to as far as its version tells, is the same, and the values of an
    inference tensor, which has no version, are compared one call later.

    Args:
        graph: of the calls.
        tensors: the first call's inputs by path.
    """

    def __init__(self, graph: TracedGraph, tensors: Tensors) -> None:
        names = [item.name for item in graph.inputs if item.role <= Role.PROMPT]
        self._seen = {
            name: _Seen(tensors[name], version_of(tensors[name]), tensors[name].detach().clone()) for name in names
        }
        self._compared: dict[str, Readback] = {}  # whether they were others at the call before

    def changed(self, tensors: Tensors) -> list[str]:
        """The paths of those that differ from the trajectory's, even if they were changed in place.

        Args:
            tensors: inputs of another call of the same graph, by path.
        """
        changed = []
        for name, known in self._seen.items():
            tensor = tensors[name]
            version = version_of(tensor)
            if known.tensor is tensor and known.version == version and is_late(tensor):
                if version == -1 and self._was_written(name, known):
                    changed.append(name)
                continue
            if _same(known.copy, tensor):
                self._seen[name] = _Seen(tensor, version, known.copy)  # so that it is known at once next time
            else:
                changed.append(name)
        return changed

    def _was_written(self, name: str, known: _Seen) -> bool:
        """Whether an inference tensor held other values at the call before; compares this call's for the next."""
        before = self._compared.pop(name, None)
        self._compared[name] = Readback((known.tensor != known.copy).any())
        if before is None or not before.values():
            return False
        _LOGGER.warning(
            "%s was written to in torch.inference_mode, which on a GPU only the next call shows: one call was computed "
            "with what it held before. Give the denoiser another tensor instead, or use torch.no_grad.",
            name,
        )
        return True


def version_of(tensor: torch.Tensor) -> int:
    """How often a tensor was written to; -1 for an inference tensor, which does not count, so that values must tell."""
    return -1 if tensor.is_inference() else tensor._version


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
