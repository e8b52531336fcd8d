"""Dispatcher: has the ranks run one denoiser call: inputs and commands out, results back.

The order of one call, with the rank that each part is for:

    1. for every evaluation that the trajectory's schedule asks for now (in look-ahead also of later calls),
       and every batch or micro-batch of it:
       a. the driver computes its share of the graph, the preamble
       b. to each rank of each branch: an Evaluate command, then the inputs that its component reads
    2. rank 0's own evaluations run in the driver's thread, and the other branches' results are received
    3. the branches' and micro-batches' rows are joined, and the output is corrected for the latent's forecast error
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from partitioner.graph.ir import Ref, Role
from partitioner.plan.plan import Plan
from partitioner.plan.ranks import rank_of, seat_of
from partitioner.plan.schedule import ComponentRun
from partitioner.search.problem import KEPT_MESSAGES
from runtime.driver.call_arguments import CallReader, Tensors
from runtime.driver.distribution import Distribution
from runtime.driver.traced_graphs import BuiltGraph
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
        built: the graph of so many rows.
        context: the number of these rows' messages in message keys.
        join: for a micro-batch whose messages later calls will read, how they become messages of the whole batch.
    """

    built: BuiltGraph
    context: int
    join: Join | None = None


class Dispatcher:
    """Sends each call's commands and inputs to the ranks, runs rank 0's own part, and joins the results."""

    def __init__(self, plan: Plan, ranks: DenoiserRanks, calls: CallReader, distribution: Distribution) -> None:
        self._plan = plan
        self._ranks = ranks
        self._calls = calls
        self._distribution = distribution

    def run(
        self, trajectory: Trajectory, tensors: Tensors, built: BuiltGraph, part: BuiltGraph | None, parts: int
    ) -> tuple[Any, ...]:
        """ComponentRun the trajectory's present call on all ranks.

        Args:
            trajectory: has taken this call's inputs.
            tensors: the call's inputs by path, on rank 0's device.
            built: the graph of a branch's rows.
            part: the graph of a micro-batch; None to compute all rows together.
            parts: how many micro-batches make the rows of a branch.

        Returns:
            The denoiser's results, in order: tensors on rank 0's device, and literals.
        """
        graph = built.graph
        whole = Batch(built, trajectory.number)
        if part is None or trajectory.mode_now != "exact":
            batches = [whole]
        else:
            batches = _micro_batches(whole, part, parts, trajectory)
        # predictors hear of the whole batch's messages: those of micro-batches only where they are joined
        runs = trajectory.runs(announced=batches[0] is whole or batches[0].join is not None)
        own: list[Evaluate] = []
        for call in dict.fromkeys(run.call for run in runs):
            now = call == trajectory.call
            branches = self._calls.halves(trajectory.inputs_at(call, graph, tensors))
            split = [self._calls.parts(rows, len(batches) if now else 1) for rows in branches]
            for index, batch in enumerate(batches if now else [whole]):
                rows = [pieces[index] for pieces in split]
                own += self._tell(batch, rows, trajectory, [run for run in runs if run.call == call])
        results = self._ranks.run(self._all_results(own, len(self._calls.halves(tensors))))
        outputs = [
            joined([made[item.name] for made in results], 0) if isinstance(item, Ref) else item
            for item in graph.results
        ]
        outputs = [trajectory.correct(output) for output in outputs]
        trajectory.done(runs)
        return tuple(outputs)

    def _tell(
        self, batch: Batch, branches: Sequence[Tensors], trajectory: Trajectory, runs: Sequence[ComponentRun]
    ) -> list[Evaluate]:
        """Command one call's runs on one batch and send their inputs; returns rank 0's own commands.

        branches: the inputs of each branch. runs: of one call.
        """
        built, context = batch.built, batch.context
        micro = context != trajectory.number
        starts = {run.component: trajectory.begin(context, run.component) for run in runs}
        prompts: tuple[str, ...] = ()
        if any(starts.values()):
            prompts = tuple(item.name for item in built.graph.inputs if item.role <= Role.PROMPT)
            prompts += tuple(w.value for w in built.specs[0].wires if w.source is None and w.role is Role.PROMPT)
        preamble = self._distribution.preamble_of(built)
        values = []
        for branch, inputs in enumerate(branches):
            if any(starts.values()):
                preamble.refresh(context, branch, inputs)
            values.append({**inputs, **preamble.compute(context, branch, inputs)})
        own = []
        for run in runs:
            start = starts[run.component]
            command = Evaluate(
                table=built.table,
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
            for branch, known in enumerate(values):
                rank = rank_of(branch, run.component, self._plan.components)
                if rank == 0:
                    own.append(command)
                else:
                    self._ranks.command(rank, command)
                self._send_inputs(rank, built, command, known)
        return own

    def _all_results(self, own: Sequence[Evaluate], branches: int) -> Waiting[list[dict[str, torch.Tensor]]]:
        """Rank 0's own part and the other branches' results: all waits of a step, so that it has one deadline."""
        worker = self._ranks.worker
        results = yield from together([worker.evaluate(command) for command in own], worker.mailbox)
        for _ in range(1, branches):
            for command in own:
                results.append((yield from worker.results_of(command)))
        return results

    def _send_inputs(self, rank: int, built: BuiltGraph, command: Evaluate, values: Tensors) -> None:
        """Send a rank those of an evaluation's inputs and preamble values that its component reads."""
        spec = built.specs[seat_of(rank, self._plan.components)[1]]
        mailbox = self._ranks.worker.mailbox
        for index, wire in spec.given:
            if wire.role > Role.PROMPT or wire.value in command.fresh:
                # a copy: the caller may write to its tensor while a rank still reads
                tensor = values[wire.value].detach().clone()
                key = MessageKey(command.table, index, command.context, command.step)
                if rank == 0:
                    mailbox.deliver(key, tensor)
                else:
                    self._ranks.worker.hand_over([rank], key, wire.value, tensor)


def _micro_batches(whole: Batch, part: BuiltGraph, parts: int, trajectory: Trajectory) -> list[Batch]:
    """The micro-batches of a call; joined where later calls will read their messages through predictors."""
    # no predictor looks further back than KEPT_MESSAGES
    read_lagged = trajectory.is_lagged and trajectory.call >= trajectory.schedule.warmup - KEPT_MESSAGES
    joins = [Join(whole.built.table, whole.context, i, parts) if read_lagged else None for i in range(parts)]
    return [Batch(part, whole.context + 1 + i, join) for i, join in enumerate(joins)]
