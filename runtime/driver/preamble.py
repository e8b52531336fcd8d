"""PreambleRunner: the driver's share of the hoisted nodes, computed once for all the components that read it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from runtime.worker.segment import HoistedSegments
from runtime.worker.specs import PreambleSpec


class PreambleRunner:
    """Computes the preamble's values on the driver's device. parameters: by path; kept, not copied."""

    def __init__(self, spec: PreambleSpec, parameters: Mapping[str, torch.Tensor], device: torch.device) -> None:
        self.values = spec.program.values
        by_name = {node.name: node for node in spec.nodes}
        self._segments = HoistedSegments(spec.program.hoisted, by_name, set(self.values), device)
        self._static = {p.name: parameters[p.path] for p in spec.parameters}
        if self._segments.constant is not None:
            self._static |= self._segments.constant(self._static)
        self._prompt: dict[tuple[int, int], dict[str, torch.Tensor]] = {}

    def refresh(self, context: int, branch: int, inputs: Mapping[str, torch.Tensor]) -> None:
        """Take new prompt inputs of a cache context and branch."""
        segment = self._segments.prompt
        self._prompt[context, branch] = segment({**self._static, **inputs}) if segment is not None else {}

    def compute(self, context: int, branch: int, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The values for one evaluation, by name; ``inputs`` are that evaluation's."""
        known = {**self._static, **inputs, **self._prompt[context, branch]}
        if self._segments.timestep is not None:
            known |= self._segments.timestep(known)
        return {name: known[name] for name in self.values}
