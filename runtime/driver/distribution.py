"""Distribution: gives every rank its component of each traced graph, and the parameters that the component reads."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch

from partitioner.graph.nodes import Parameter
from partitioner.graph.tensor_meta import meta_of
from partitioner.plan.plan import Plan
from partitioner.plan.ranks import seat_of
from runtime.driver.preamble import PreambleRunner
from runtime.driver.traced_graphs import BuiltGraph
from runtime.options import EngineOptions
from runtime.ranks.base import DenoiserRanks
from runtime.transport.mailbox import PARAMETER_CONTEXT, MessageKey
from runtime.transport.weights import Weights
from runtime.worker.commands import Build, Forget, ForgetGraphs, Load, SendBack
from runtime.worker.specs import ComponentSpec
from runtime.worker.waiting import run_to_end


class Distribution:
    """What each rank of an engine has been given so far: components of graphs, and parameters."""

    def __init__(
        self, plan: Plan, options: EngineOptions, ranks: DenoiserRanks, weights: Weights, lists: Iterator[int]
    ) -> None:
        """Give nothing yet.

        Args:
            plan: of the denoiser.
            options: of the engine.
            ranks: what it is given to.
            weights: the denoiser's.
            lists: the numbers that lists of parameters get, 1 and above; the tables of their messages are negative.
        """
        self._plan = plan
        self._ranks = ranks
        self._weights = weights
        self._in_processes = options.transport == "processes"
        self._keeps = options.keep_weights or not self._in_processes  # parameters that only other ranks need, here
        # by rank, what it has been given: path -> the denoiser's own tensor
        self._held: list[dict[str, torch.Tensor]] = [{} for _ in range(plan.ranks)]
        self._outdated = False  # whether the ranks have graphs of what the denoiser was before it was changed
        self._preambles: dict[int, PreambleRunner] = {}  # by table
        self._lists = lists

    def give(self, built: BuiltGraph) -> bool:
        """Give every rank its component of a graph and the parameters that it lacks; False if it has been done."""
        if self.has(built):
            return False
        worker = self._ranks.worker
        state = self._weights.state()
        needed_by = [self._needed(rank, built) for rank in range(self._plan.ranks)]
        computed_with = needed_by[:1] if self._in_processes else needed_by if worker.device.type == "cpu" else []
        self._weights.take_out([p for needed in computed_with for p in needed.values()])
        if self._outdated:
            self._forget_graphs(needed_by, state)
        for rank, needed in enumerate(needed_by):
            build = Build(built.table, self._spec_of(rank, built))
            missing = tuple(p for path, p in needed.items() if path not in self._held[rank])
            self._held[rank].update({p.path: state[p.path] for p in missing if p.path in state})
            if rank == 0:
                worker.build(build)
                tensors = self._weights.tensors_of(missing)
                worker.parameters.update({path: tensor.to(worker.device) for path, tensor in tensors.items()})
            else:
                self._ranks.command(rank, build)
                self._send_parameters(rank, missing)
        self._preambles[built.table] = PreambleRunner(built.preamble_spec, worker.parameters, worker.device)
        self._ranks.wait_loaded()
        return True

    def outdate(self, written: Collection[torch.Tensor]) -> None:
        """Take note that the denoiser was changed: no graph given so far will be run again.

        Args:
            written: those of its tensors that may hold other values now.
        """
        ids = set(map(id, written))
        self._weights.take_out_written(written)
        self._held = [{p: tensor for p, tensor in held.items() if id(tensor) not in ids} for held in self._held]
        self._outdated = True

    def drop(self, tables: Collection[int]) -> None:
        """Have every rank forget some graphs that will not be run again, and keep all else. tables: their numbers."""
        given = tuple(table for table in tables if self._preambles.pop(table, None) is not None)
        for rank, held in enumerate(self._held if given else ()):
            self._tell_forget(rank, ForgetGraphs(given, tuple((path, path) for path in held)))

    def _tell_forget(self, rank: int, command: ForgetGraphs) -> None:
        if rank == 0:
            run_to_end(self._ranks.worker.forget_graphs(command), self._ranks.worker.mailbox)
        else:
            self._ranks.command(rank, command)

    def _forget_graphs(self, needed_by: Collection[Mapping[str, Parameter]], state: Mapping[str, torch.Tensor]) -> None:
        """Have ranks forget the graphs so far, and all parameters but those that they need and have, at today's paths.

        needed_by: by rank, what it needs by path. state: the denoiser's tensors by path.
        """
        path_of = {id(tensor): path for path, tensor in state.items()}
        for rank, needed in enumerate(needed_by):
            kept: dict[str, str] = {}
            for path, tensor in self._held[rank].items():
                now = path if state.get(path) is tensor else path_of.get(id(tensor))
                if now is not None and now in needed and now not in kept.values():
                    kept[path] = now
            self._held[rank] = {now: self._held[rank][before] for before, now in kept.items()}
            self._tell_forget(rank, ForgetGraphs(tuple(self._preambles), tuple(kept.items())))
        self._preambles.clear()
        self._outdated = False

    def _needed(self, rank: int, built: BuiltGraph) -> dict[str, Parameter]:
        """The parameters of a graph that a rank reads, by path."""
        own = built.preamble_spec.parameters if rank == 0 else ()
        return {p.path: p for p in (*self._spec_of(rank, built).parameters, *own)}

    def _spec_of(self, rank: int, built: BuiltGraph) -> ComponentSpec:
        return built.specs[seat_of(rank, self._plan.components)[1]]

    def has(self, built: BuiltGraph) -> bool:
        """Whether a graph has been given."""
        return built.table in self._preambles

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

    def let_go(self) -> None:
        """Drop what the driver computes with: the ranks have ended."""
        self._preambles.clear()

    def release(self) -> None:
        """Let go of the parameters that only other processes need, if the options want that; files hold them."""
        if not self._keeps:
            self._weights.release([path for held in self._held[1:] for path in held], self._held[0].keys())
        elif self._in_processes:
            self._weights.take_out_all()

    def recover(self, *, thorough: bool = False) -> list[str]:
        """Have ranks send back the parameters that were let go of and whose file has been written to since.

        Args:
            thorough: see Weights.lost.

        Returns:
            Paths of those that were written to themselves before, since the last call: they are what they were then.

        Raises:
            EngineError: a rank that has them has ended.
        """
        lost = {id(tensor): tensor for tensor in self._weights.lost(thorough=thorough)}
        undone: list[str] = []
        for rank in range(1, self._plan.ranks if lost else 0):
            wanted = {path: lost.pop(id(tensor)) for path, tensor in self._held[rank].items() if id(tensor) in lost}
            if wanted:
                parameters = tuple(Parameter(path, path, meta_of(tensor)) for path, tensor in wanted.items())
                command = SendBack(-next(self._lists), parameters, rank)
                mailbox = self._ranks.worker.mailbox
                mailbox.register(command.table, command.wires)
                self._ranks.command(rank, command)
                received = self._ranks.run(self._ranks.worker.receive_back(command))
                undone += self._weights.put_back([(tensor, received[path]) for path, tensor in wanted.items()])
                mailbox.unregister([command.table])
        return undone

    def _send_parameters(self, rank: int, missing: tuple[Parameter, ...]) -> None:
        """Have a rank read parameters from files, and send it those that no file holds."""
        stored_in = self._weights.files_of(missing) if self._in_processes else {}
        files = self._ranks.readable(rank, stored_in)
        sent = tuple(p for p in missing if p.path not in files)
        stored = tuple(p for p in missing if p.path in files)
        offsets = self._weights.offsets_of((*sent, *stored))
        load = Load(
            -next(self._lists), sent, tuple((p, files[p.path], stored_in[p.path].digest) for p in stored), offsets
        )
        mailbox = self._ranks.worker.mailbox
        self._ranks.command(rank, load)
        mailbox.register(load.table, load.wires)
        for index, tensor in enumerate(self._weights.tensors_of(sent).values()):
            mailbox.send([rank], MessageKey(load.table, index, PARAMETER_CONTEXT, 0), tensor)
        mailbox.unregister([load.table])


def undone_text(paths: Sequence[str]) -> str:
    """What to say of parameters whose changes are undone. paths: theirs."""
    more = f" and {len(paths) - 3} others" if len(paths) > 3 else ""
    return (
        f"{', '.join(paths[:3])}{more} was changed, and before the next call the file that it had been loaded from was "
        "written to: the change is undone, make it again"
    )
