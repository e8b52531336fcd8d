"""Plans of the toy denoiser, with the naive reference of what an engine computes by them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from partitioner.plan.plan import Plan
from tests.support.engines import Trajectory, folded, reference, toy, toy_graph, toy_plan

DENOISER = toy()
GRAPHS = {rows: cache(lambda rows=rows: toy_graph(DENOISER, rows)) for rows in (1, 2, 4)}


@dataclass(frozen=True)
class Kind:
    """A plan, and the naive reference for it."""

    plan: Plan

    def alone(self, trajectory: Trajectory) -> list[torch.Tensor]:
        """The trajectory as if nothing had been run before it."""
        rows = trajectory.latents[0].shape[0]
        branches = self.plan.branches if rows % self.plan.branches == 0 else 1
        graph = GRAPHS[rows // branches]()
        parts = [
            reference(
                DENOISER, graph, self.plan.place(graph), half,
                warmup=self.plan.warmup, predictor=self.plan.predictor, periods=self.plan.periods,
            )
            for half in trajectory.halves(branches)
        ]  # fmt: skip
        return [torch.cat(outputs) for outputs in zip(*parts, strict=True)]


KINDS = {
    "folded": Kind(toy_plan(DENOISER, 3, placed=folded, predictor="adaptive")),
    "branches": Kind(toy_plan(DENOISER, 2, branches=2, periods=(2, 1), predictor="linear")),
    "held": Kind(toy_plan(DENOISER, 2, placed=folded, periods=(2, 1), predictor="hold")),
}
