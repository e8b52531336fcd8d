"""PromptInputs: notices when the conditions of a denoiser call are not those of the call before."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from partitioner.graph.ir import Role, TracedGraph
from runtime.driver.call_arguments import Tensors


@dataclass(frozen=True)
class _Seen:
    """A prompt input as it was last seen: the caller's tensor, its version then, and a copy of what it held."""

    tensor: torch.Tensor
    version: int
    copy: torch.Tensor


class PromptInputs:
    """The prompt inputs of the last call of one cache context."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def changed(self, graph: TracedGraph, tensors: Tensors) -> bool:
        """Whether a prompt input differs from the last call's, even if it was changed in place; takes this call's."""
        changed = False
        for item in graph.inputs:
            if item.role > Role.PROMPT:
                continue
            tensor = tensors[item.name]
            # an inference tensor counts no versions, so that its values must be compared
            version = -1 if tensor.is_inference() else tensor._version
            known = self._seen.get(item.name)
            if known is not None and known.tensor is tensor and known.version == version != -1:
                continue
            if known is None or not _same(known.copy, tensor):
                changed = True
                self._seen[item.name] = _Seen(tensor, version, tensor.detach().clone())
            else:
                self._seen[item.name] = _Seen(tensor, version, known.copy)
        return changed


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
