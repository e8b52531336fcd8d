"""DenoiserCall: a denoiser call, as far as it tells whose it is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Role
from runtime.driver.call_arguments import CallForm, Tensors
from runtime.driver.callers import Caller
from runtime.driver.timestep_reader import timestep_number
from runtime.driver.traced_graphs import CallGraphs


@dataclass(frozen=True)
class DenoiserCall:
    """A denoiser call, as far as it tells whose it is.

    Attributes:
        caller: who makes it.
        context_name: of its cache context.
        graphs: of the call, one for each branch that its rows are shared by.
        tensors: its inputs by path.
        form: what else its arguments are.
        number: its timestep, where that is known.
    """

    caller: Caller
    context_name: str
    graphs: CallGraphs
    tensors: Tensors
    form: CallForm
    number: float | None = None

    @property
    def graph(self) -> TracedGraph:
        """Of the rows of its first branch."""
        return self.graphs.graph

    @property
    def branches(self) -> int:
        """How many branches its rows are shared by."""
        return len(self.graphs.branches)

    @cached_property
    def timestep(self) -> float | None:
        """Its timestep; None where it has none."""
        path = self._first(Role.TIMESTEP)
        if self.number is not None and path is not None:
            return self.number
        return timestep_number(self.tensors[path]) if path is not None else None

    @cached_property
    def latent(self) -> torch.Tensor:
        """The latent, as the pipeline passes it."""
        path = self._first(Role.LATENT)
        assert path is not None, "every plan has a latent"
        return self.tensors[path]

    @cached_property
    def timesteps(self) -> torch.Tensor | None:
        """Its scheduler's."""
        return timesteps_of(self.caller)

    def _first(self, role: Role) -> str | None:
        return next((item.name for item in self.graph.inputs if item.role is role), None)


def timesteps_of(caller: Caller) -> torch.Tensor | None:
    """Its scheduler's timesteps: a tensor that every run of a pipeline makes anew."""
    found = getattr(caller.scheduler(), "timesteps", None) if caller.scheduler is not None else None
    return found if isinstance(found, torch.Tensor) else None
