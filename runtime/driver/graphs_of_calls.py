"""GraphsOfCalls: the graphs that a call is made by, one for each branch, or of micro-batches; every rank has them."""

from __future__ import annotations

from runtime.driver.call_arguments import CallForm, CallReader, Tensors
from runtime.driver.change_follower import ChangeFollower
from runtime.driver.denoiser_changes import DenoiserChanges
from runtime.driver.distribution import Distribution
from runtime.driver.shared_rows import SharedRows
from runtime.driver.traced_graphs import BuiltGraph, CallGraphs, TracedGraphs
from runtime.worker.microbatches import can_join


class GraphsOfCalls:
    """Finds the graphs of one denoiser's calls, has what is new traced, and has ranks given what they lack.

    Args:
        calls: reads the calls.
        graphs: that were traced.
        rows: whether rows can be shared out.
        distribution: gives the ranks their parts.
        changes: what the denoiser was when it was last looked at.
        follower: looks at it before anything is traced or given.
        microbatches: how many an exact call is to be split into.
    """

    def __init__(
        self,
        calls: CallReader,
        graphs: TracedGraphs,
        *,
        rows: SharedRows,
        distribution: Distribution,
        changes: DenoiserChanges,
        follower: ChangeFollower,
        microbatches: int,
    ) -> None:
        self._calls = calls
        self._graphs = graphs
        self._rows = rows
        self._distribution = distribution
        self._changes = changes
        self._follower = follower
        self._part_counts = [count for count in range(microbatches, 1, -1) if microbatches % count == 0]

    def of(self, tensors: Tensors, form: CallForm) -> CallGraphs:
        """The graphs of such a call.

        Raises:
            LookFirst: something is to be traced or given, and the denoiser has not been looked at.
            InputError: it cannot be traced, or the plan does not fit its graph.
        """
        branches = self._calls.by_branch(tensors)
        built = tuple(self._given(rows, form) for rows in branches)
        if len(branches) > 1 and not self._rows.are_shared(
            tensors, [each.graph for each in built], lambda: self._traced(tensors, form).graph
        ):
            self._calls.keep_together(tensors)
            return self.of(tensors, form)
        if len(set(map(id, built))) > 1:
            return CallGraphs(built)
        return CallGraphs(built, *self._micro_batches(built[0], branches[0], form))

    def _given(self, tensors: Tensors, form: CallForm) -> BuiltGraph:
        """The graph of such rows, which every rank has."""
        built = self._traced(tensors, form)
        if self._distribution.has(built):
            return built
        self._follower.require_look()
        first = not self._distribution.given
        if built.changed:
            self._follower.outdate(())
        if self._distribution.give(built):
            if first:
                self._distribution.release()
            self._changes.settle()
        return built

    def _traced(self, tensors: Tensors, form: CallForm) -> BuiltGraph:
        return self._graphs.graph_of(tensors, form, self._follower.require_look)

    def _micro_batches(self, whole: BuiltGraph, tensors: Tensors, form: CallForm) -> tuple[BuiltGraph | None, int]:
        """The graph of a micro-batch of such rows, and how many of them there are.

        As many as was asked for, or the most that divide both that and the rows; (None, 1) where the rows, or the
        boundary tensors, cannot be split.
        """
        for count in self._part_counts:
            parts = self._calls.parts(tensors, count)
            if len(parts) < count:
                continue
            part = self._given(parts[0], form)
            fits = self._rows.keeps_parts(whole.graph, part.graph, count)
            if fits and can_join(whole.specs[0].wires, part.specs[0].wires, count):
                return part, count
            break
        return None, 1
