"""Dispatcher: has the ranks run one denoiser call: inputs and commands out, results back.

The order of one call, with the rank that each part is for:

    1. for every evaluation that the trajectory's schedule asks for now (in look-ahead also of later calls),
       and every batch or micro-batch of it:
       a. the driver computes its share of the graph, the preamble
       b. to each rank of each branch: an Evaluate command, then the inputs that its component reads
    2. rank 0's own evaluations run in the driver's thread: on a CPU to their end, on a GPU until all is queued
    3. while the other branches compute, and rank 0's GPU, the driver has time for something else
    4. the other branches' results are received
    5. the branches' and micro-batches' rows are joined, and the output is corrected for the latent's forecast error

``begin`` is 1, ``run`` 2 to 4, ``finish`` 5. Other calls may be begun, and finished, on other branches between them. A
call that was run need not be finished.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Ref, Role
from partitioner.plan.plan import Plan
from partitioner.plan.ranks import rank_of, seat_of
from partitioner.plan.schedule import ComponentRun
from partitioner.search.problem import KEPT_MESSAGES
from runtime.driver.call_arguments import CallReader, Tensors
from runtime.driver.distribution import Distribution
from runtime.driver.traced_graphs import BuiltGraph, CallGraphs
from runtime.driver.trajectory import Trajectory
from runtime.ranks.base import DenoiserRanks
from runtime.transport.layout import joined
from runtime.transport.mailbox import MessageKey
from runtime.worker.commands import Evaluate, Join
from runtime.worker.waiting import Waiting, together


@dataclass(frozen=True)
class Batch:
    """Rows that are computed together: all of a call, or one micro-batch.

    Attributes:
        built: by branch, the graph of so many rows.
        context: the number of these rows' messages in message keys.
        join: for a micro-batch whose messages later calls will read, how they become messages of the whole batch.
    """

    built: tuple[BuiltGraph, ...]
    context: int
    join: Join | None = None


@dataclass(eq=False)
class Part:
    """Some rows of a running call.

    Attributes:
        branch: that computes them.
        command: to the rank that makes their results.
        results: by value name; None until they are there.
    """

    branch: int
    command: Evaluate
    results: dict[str, torch.Tensor] | None = None


@dataclass(frozen=True, eq=False)
class RunningCall:
    """A call that ranks have been told to make.

    Attributes:
        trajectory: that it is of, and that has taken its inputs.
        graph: of the call.
        runs: what the components were told to run.
        parts: of its rows, in their order.
    """

    trajectory: Trajectory
    graph: TracedGraph
    runs: Sequence[ComponentRun]
    parts: Sequence[Part]


class Dispatcher:
    """Sends each call's commands and inputs to the ranks, runs rank 0's own part, and joins the results."""

    def __init__(self, plan: Plan, ranks: DenoiserRanks, calls: CallReader, distribution: Distribution) -> None:
        self._plan = plan
        self._ranks = ranks
        self._calls = calls
        self._distribution = distribution

    def begin(self, trajectory: Trajectory, tensors: Tensors, graphs: CallGraphs, first_branch: int = 0) -> RunningCall:
        """Have all ranks of some branches run a trajectory's present call.

        Args:
            trajectory: has taken this call's inputs.
            tensors: the call's inputs by path, on rank 0's device.
            graphs: of the call.
            first_branch: of those that share in it.
        """
        whole = Batch(graphs.branches, trajectory.number)
        if graphs.part is None or trajectory.mode_now != "exact":
            batches = [whole]
        else:
            batches = _micro_batches(whole, graphs.part, graphs.parts, trajectory)
        # predictors hear of the whole batch's messages: those of micro-batches only where they are joined
        runs = trajectory.runs(announced=batches[0] is whole or batches[0].join is not None)
        last: dict[tuple[int, int], Part] = {}  # by (branch, batch)
        for call in dict.fromkeys(run.call for run in runs):
            now = call == trajectory.call
            own = [run for run in runs if run.call == call]
            specs = graphs.branches[0].specs
            read = {wire.value for run in own for _, wire in specs[run.component].given}
            branches = self._calls.by_branch(trajectory.inputs_at(call, graphs.graph, tensors, read))
            split = [self._calls.parts(rows, len(batches) if now else 1) for rows in branches]
            for index, batch in enumerate(batches if now else [whole]):
                rows = [pieces[index] for pieces in split]
                told = self._tell(batch, first_branch, rows, trajectory, own, now)
                last |= {(part.branch, index): part for part in told}
        return RunningCall(trajectory, graphs.graph, runs, [last[key] for key in sorted(last)])

    def run(self, call: RunningCall, begun: Sequence[RunningCall], meanwhile: Callable[[], object]) -> None:
        """Have a call run to its end.

        Args:
            call: that was begun.
            begun: others, of which rank 0 has its own part still to do.
            meanwhile: what the driver does when rank 0 has done that, or has told its GPU to.
        """
        self._ranks.run(self._results(call, begun, meanwhile))

    def finish(self, call: RunningCall) -> tuple[Any, ...]:
        """The results of a call that has run, in order: tensors on rank 0's device, and literals."""
        made = [part.results for part in call.parts if part.results is not None]
        joint = [_joined(item.name, made) if isinstance(item, Ref) else item for item in call.graph.results]
        corrected = call.trajectory.correct(joint)
        call.trajectory.done(call.runs)
        # what was computed of all rows together is the worker's, or its graph's, and what was corrected nobody else's
        is_shared = len(made) == 1
        return tuple(
            output.clone() if is_shared and output is before and isinstance(output, torch.Tensor) else output
            for output, before in zip(corrected, joint, strict=True)
        )

    def _tell(
        self,
        batch: Batch,
        first_branch: int,
        branches: Sequence[Tensors],
        trajectory: Trajectory,
        runs: Sequence[ComponentRun],
        now: bool,
    ) -> list[Part]:
        """Command one call's runs on one batch and send their inputs; returns what makes the batch's results.

        branches: the inputs of each branch. runs: of one call. now: whether that is the present one.
        """
        context = batch.context
        micro = context != trajectory.number
        starts = {run.component: trajectory.begin(context, run.component) for run in runs}
        prompts: tuple[str, ...] = ()
        if any(starts.values()):
            prompts = tuple(item.name for item in batch.built[0].graph.inputs if item.role <= Role.PROMPT)
            wires = batch.built[0].specs[0].wires
            prompts += tuple(w.value for w in wires if w.source is None and w.role is Role.PROMPT)
        values = []
        for branch, (built, inputs) in enumerate(zip(batch.built, branches, strict=True), first_branch):
            preamble = self._distribution.preamble_of(built)
            if any(starts.values()):
                preamble.refresh(context, branch, inputs)
            values.append({**inputs, **preamble.compute(context, branch, inputs)})
        parts = []
        for run in runs:
            start = starts[run.component]
            command = Evaluate(
                table=batch.built[0].table,
                context=context,
                step=trajectory.base + run.call,
                reads=tuple(trajectory.base + call for call in run.reads),
                arrivals=() if micro else trajectory.announce(run.component),
                fresh=prompts if start else (),
                start=trajectory.base if start else None,
                observe=trajectory.is_lagged and not micro,
                ahead=None if micro else trajectory.ahead,
                join=batch.join,
            )
            for branch, (built, known) in enumerate(zip(batch.built, values, strict=True), first_branch):
                rank = rank_of(branch, run.component, self._plan.components)
                told = command if built is batch.built[0] else replace(command, table=built.table)
                if rank != 0:  # its own it runs later
                    self._ranks.command(rank, told)
                self._send_inputs(rank, built, told, known, now)
                if run.component == self._plan.components - 1:
                    parts.append(Part(branch, told))
        return parts

    def _results(
        self, call: RunningCall, begun: Sequence[RunningCall], meanwhile: Callable[[], object]
    ) -> Waiting[None]:
        """Rank 0's own parts, and the other branches' results: all waits of a call, so that it has one deadline."""
        worker = self._ranks.worker
        own = [part for each in (call, *begun) for part in each.parts if part.branch == 0 and part.results is None]
        made = yield from together([worker.evaluate(part.command) for part in own], worker.mailbox)
        for part, results in zip(own, made, strict=True):
            part.results = results
        meanwhile()
        for part in call.parts:
            if part.results is None:
                part.results = yield from worker.results_of(part.command, part.branch)

    def _send_inputs(self, rank: int, built: BuiltGraph, command: Evaluate, values: Tensors, now: bool) -> None:
        """Send a rank those of an evaluation's inputs and preamble values that its component reads.

        now: whether it is of the present call; what differs in a later one from that is the driver's own.
        """
        spec = built.specs[seat_of(rank, self._plan.components)[1]]
        mailbox = self._ranks.worker.mailbox
        is_copied = rank != 0 and mailbox.copies_sent
        for index, wire in spec.given:
            if wire.role > Role.PROMPT or wire.value in command.fresh:
                tensor = values[wire.value]
                if not is_copied and (now or wire.role <= Role.PROMPT):
                    tensor = tensor.clone()  # the caller may write to its own while a rank still reads
                key = MessageKey(command.table, index, command.context, command.step)
                if rank == 0:
                    mailbox.deliver(key, tensor)
                else:
                    self._ranks.worker.hand_over([rank], key, wire.value, tensor)


def _joined(name: str, parts: Sequence[Mapping[str, torch.Tensor]]) -> torch.Tensor:
    """One result of a call, of all its rows. parts: all results of some rows each, in their order."""
    return parts[0][name] if len(parts) == 1 else joined([part[name] for part in parts], 0)


def _micro_batches(whole: Batch, part: BuiltGraph, parts: int, trajectory: Trajectory) -> list[Batch]:
    """The micro-batches of a call; joined where later calls will read their messages through predictors."""
    # no predictor looks further back than KEPT_MESSAGES
    read_lagged = trajectory.is_lagged and trajectory.call >= trajectory.schedule.warmup - KEPT_MESSAGES
    joins = [Join(whole.built[0].table, whole.context, i, parts) if read_lagged else None for i in range(parts)]
    built = (part,) * len(whole.built)
    return [Batch(built, whole.context + 1 + i, join) for i, join in enumerate(joins)]
