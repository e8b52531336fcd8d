"""PreambleRunner: computes on the driver what several components would otherwise each compute for themselves.

These are nodes that depend on a parameter and on the prompt or the timestep, not on the latent, and that several
components need, such as the timestep's embedding: see partitioner.plan.preamble.Preamble. Their values are sent to the
ranks like inputs, so that the parameters are held once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from runtime.worker.segment import HoistedSegments
from runtime.worker.specs import PreambleSpec
from runtime.worker.static_values import static_values


class PreambleRunner:
    """Computes the preamble of one traced graph."""

    def __init__(self, spec: PreambleSpec, parameters: Mapping[str, torch.Tensor], device: torch.device) -> None:
        """Lower the preamble's nodes.

        Args:
            spec: the nodes, and the values that components read.
            parameters: by path in the denoiser's state; kept, not copied.
            device: the driver's.
        """
        self.values = spec.program.values
        by_name = {node.name: node for node in spec.nodes}
        self._segments = HoistedSegments(spec.program.hoisted, by_name, set(self.values), device)
        self._static = static_values(spec.parameters, parameters, self._segments.constant)
        self._prompt: dict[tuple[int, int], dict[str, torch.Tensor]] = {}

    def refresh(self, context: int, branch: int, inputs: Mapping[str, torch.Tensor]) -> None:
        """Compute what depends on the prompt inputs of a cache context and branch, at a trajectory's start."""
        segment = self._segments.prompt
        self._prompt[context, branch] = segment({**self._static, **inputs}) if segment is not None else {}

    def forget(self, contexts: Collection[int]) -> None:
        """Drop what was computed of the prompts of these contexts."""
        self._prompt = {key: values for key, values in self._prompt.items() if key[0] not in contexts}

    def compute(self, context: int, branch: int, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The preamble's values for one evaluation, by name; ``inputs`` are that evaluation's, by name."""
        known = {**self._static, **inputs, **self._prompt[context, branch]}
        if self._segments.timestep is not None:
            known |= self._segments.timestep(known)
        return {name: known[name] for name in self.values}
