"""Distribution: gives every rank its component of each traced graph, and the parameters that the component reads."""

from __future__ import annotations

from collections.abc import Sequence

from partitioner.graph.ir import Parameter
from partitioner.plan.plan import Plan
from partitioner.plan.ranks import seat_of
from runtime.driver.preamble import PreambleRunner
from runtime.driver.traced_graphs import BuiltGraph
from runtime.options import EngineOptions
from runtime.ranks.base import Ranks
from runtime.transport.mailbox import MessageKey
from runtime.transport.weights import Weights
from runtime.worker.commands import Build, Forget, Load, SendBack
from runtime.worker.worker import PARAMETER_CONTEXT


class Distribution:
    """What each rank of an engine has been given so far: components of graphs, and parameters."""

    def __init__(self, plan: Plan, options: EngineOptions, ranks: Ranks, weights: Weights) -> None:
        self._plan = plan
        self._ranks = ranks
        self._weights = weights
        self._in_processes = options.transport == "processes"
        # whether parameters that only other ranks need leave this process
        self._releases = self._in_processes and not options.keep_weights
        self._loaded: list[set[str]] = [set() for _ in range(plan.ranks)]  # rank -> paths of parameters
        self._preambles: dict[int, PreambleRunner] = {}  # by table
        self._lists = 0  # Load commands so far

    def give(self, built: BuiltGraph) -> None:
        """Give every rank its component of a graph and the parameters that it lacks; nothing if it has been done."""
        if built.table in self._preambles:
            return
        worker = self._ranks.worker
        for rank in range(self._plan.ranks):
            spec = built.specs[seat_of(rank, self._plan.components)[1]]
            build = Build(built.table, spec)
            needed = {p.path: p for p in (*spec.parameters, *(built.preamble_spec.parameters if rank == 0 else ()))}
            missing = tuple(p for path, p in needed.items() if path not in self._loaded[rank])
            self._loaded[rank].update(p.path for p in missing)
            if rank == 0:
                worker.build(build)
                if self._releases:
                    self._weights.take_out(missing)
                tensors = self._weights.tensors_of(missing)
                worker.parameters.update({path: tensor.to(worker.device) for path, tensor in tensors.items()})
            else:
                self._ranks.command(rank, build)
                self._send_parameters(rank, missing)
        self._preambles[built.table] = PreambleRunner(built.preamble_spec, worker.parameters, worker.device)
        self._ranks.wait_loaded()

    @property
    def given(self) -> bool:
        """Whether the ranks have been given any graph."""
        return bool(self._preambles)

    def preamble_of(self, built: BuiltGraph) -> PreambleRunner:
        """What computes the driver's share of a graph that has been given."""
        return self._preambles[built.table]

    def forget(self, contexts: Sequence[int], before_step: int) -> None:
        """Have every rank drop what it keeps of a trajectory that has ended.

        Args:
            contexts: the trajectory's number and those of its micro-batches.
            before_step: the first step that the numbers may be used for again.
        """
        command = Forget(tuple(contexts), before_step)
        self._ranks.worker.forget(command)
        for rank in range(1, self._plan.ranks):
            self._ranks.command(rank, command)
        for preamble in self._preambles.values():
            preamble.forget(contexts)

    def release(self) -> None:
        """Let go of the parameters that only other processes need, if the options want that; files hold them."""
        if self._releases:
            self._weights.release([path for paths in self._loaded[1:] for path in paths], self._loaded[0])

    def recover(self) -> None:
        """Have ranks send back the parameters that were let go of and whose file has been written to since.

        Raises:
            EngineError: a rank that has them has ended.
        """
        lost = {parameter.path: parameter for parameter in self._weights.lost()}
        for rank in range(1, self._plan.ranks):
            wanted = tuple(lost.pop(path) for path in list(lost) if path in self._loaded[rank])
            if wanted:
                self._lists += 1
                command = SendBack(-self._lists, wanted, rank)
                self._ranks.worker.mailbox.register(command.table, command.wires)
                self._ranks.command(rank, command)
                self._weights.put_back(self._ranks.run(self._ranks.worker.receive_back(command)))

    def _send_parameters(self, rank: int, missing: tuple[Parameter, ...]) -> None:
        """Have a rank read parameters from files, and send it those that no file holds."""
        self._lists += 1
        stored_in = self._weights.files_of(missing) if self._in_processes else {}
        files = self._ranks.readable(rank, {path: stored.file for path, stored in stored_in.items()})
        sent = tuple(p for p in missing if p.path not in files)
        stored = tuple(p for p in missing if p.path in files)
        offsets = self._weights.offsets_of((*sent, *stored))
        load = Load(-self._lists, sent, tuple((p, files[p.path]) for p in stored), offsets)
        mailbox = self._ranks.worker.mailbox
        self._ranks.command(rank, load)
        mailbox.register(load.table, load.wires)
        for index, tensor in enumerate(self._weights.tensors_of(sent).values()):
            mailbox.send([rank], MessageKey(load.table, index, PARAMETER_CONTEXT, 0), tensor)
