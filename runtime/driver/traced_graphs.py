"""TracedGraphs: the traced graph of every kind of call that a denoiser is given, each traced and split once.

Two calls are of one kind if their shapes, dtypes, literal arguments and containers are the same (``call_signature``).
Where a denoiser is this and that by turns, the graphs of each of its states are kept. Of all those that were used last
are kept (``EngineOptions.kept_graphs``); what ranks have of the others they are told to forget.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from partitioner.errors import ForwardFailed, PartitionerError, TraceError, reason_of
from partitioner.graph.export import trace
from partitioner.graph.fakes import traceable
from partitioner.graph.ir import TracedGraph
from partitioner.plan.plan import Plan
from runtime.driver.call_arguments import CallForm, CallReader, CallSignature, Tensors, call_signature, graph_signature
from runtime.driver.denoiser_changes import KEPT
from runtime.driver.warn_once import warn_once
from runtime.errors import InputError, OtherCalls, OtherDenoiser, PlanMismatch
from runtime.transport.in_memory import check_in_memory
from runtime.worker.specs import ComponentSpec, PreambleSpec, build_specs

REMEMBERED = 1024  # graphs that were let go of, by a number each

_LOGGER = logging.getLogger("runtime")


@dataclass(frozen=True)
class BuiltGraph:
    """A traced graph, split by the plan.

    Attributes:
        table: its number, by which commands and messages name it.
        graph: the traced graph.
        specs: by component, what its ranks need to know.
        preamble_spec: what the driver computes for all components.
        changed: whether such calls had another graph before the denoiser was changed.
    """

    table: int
    graph: TracedGraph
    specs: Sequence[ComponentSpec]
    preamble_spec: PreambleSpec
    changed: bool = False


@dataclass(frozen=True)
class CallGraphs:
    """The graphs of one call.

    Attributes:
        branches: of the rows of each branch that shares in the call.
        part: of a micro-batch; None to compute a branch's rows together.
        parts: how many micro-batches make the rows of a branch.
    """

    branches: tuple[BuiltGraph, ...]
    part: BuiltGraph | None = None
    parts: int = 1

    @property
    def graph(self) -> TracedGraph:
        """Of the first branch; those of the others differ in the number of rows at most."""
        return self.branches[0].graph

    @property
    def tables(self) -> tuple[int, ...]:
        """The number of each branch's graph."""
        return tuple(built.table for built in self.branches)

    @property
    def all_tables(self) -> set[int]:
        """The numbers of all graphs."""
        return {*self.tables, *([self.part.table] if self.part is not None else [])}


class TracedGraphs:
    """Traces a denoiser for the calls that it is given, checks each graph against the plan, and keeps it."""

    def __init__(
        self,
        denoiser: nn.Module,
        plan: Plan,
        calls: CallReader,
        tables: Iterator[int],
        *,
        most: int,
        warned: set[str],
        traced: Callable[[], nn.Module] | None = None,
    ) -> None:
        """Trace nothing yet.

        Args:
            denoiser: what is called.
            plan: how its graphs are split.
            calls: reads its calls by that plan.
            tables: the numbers that graphs get.
            most: how many graphs are kept.
            warned: what the user has been warned of.
            traced: gives what stands for the denoiser when it is traced; None: itself.
        """
        self._denoiser = denoiser
        self._traced = traced or (lambda: denoiser)
        self._plan = plan
        self._calls = calls
        self._graphs: dict[CallSignature, BuiltGraph] = {}
        self._turns: dict[int, dict[CallSignature, BuiltGraph]] = {}  # of each other state; what was used last is last
        self._is_plans = False  # whether the denoiser is known to be the plan's, by its graph
        self._former: dict[CallSignature, BuiltGraph] = {}  # of what the denoiser was before it was changed
        self._tables = tables
        self._uses: dict[int, None] = {}  # all numbers; what was used last is last
        self._gone: dict[int, None] = {}  # hashes of the signatures of graphs that were let go of
        self._most = most
        self._warned = warned

    def turn(self, before: int, now: int) -> list[int]:
        """Go on with the graphs of what the denoiser is now, which it may have been before; the others are kept.

        Args:
            before: the number of what it was.
            now: the number of what it is.

        Returns:
            The numbers of graphs of states that are not kept any longer, and of no others.
        """
        self._turns[before] = self._graphs
        self._graphs = self._turns.pop(now, {})
        old = [self._turns.pop(state) for state in list(self._turns)[: 1 - KEPT]]
        kept = {built.table for graphs in (self._graphs, *self._turns.values()) for built in graphs.values()}
        return [built.table for graphs in old for built in graphs.values() if built.table not in kept]

    @property
    def turns(self) -> bool:
        """Whether the denoiser is this and that by turns."""
        return bool(self._turns)

    def forget(self) -> None:
        """Trace the denoiser anew for every call from now on: it was changed.

        Where that does not show in a graph, the former one goes on to be used, unless ``outdate`` is called.
        """
        self._former |= self._graphs
        self._graphs, self._turns = {}, {}

    def outdate(self) -> None:
        """Use no former graph again: what the ranks have been given with it is of no use any more."""
        self._former = {}

    def renew(self) -> None:
        """Give every graph another number, under which ranks are given what it reads anew."""
        renewed: dict[int, BuiltGraph] = {}
        for graphs in (self._graphs, *self._turns.values()):
            for signature, built in graphs.items():
                if built.table not in renewed:
                    renewed[built.table] = replace(built, table=next(self._tables))
                graphs[signature] = renewed[built.table]
        self._uses = {renewed[table].table if table in renewed else table: None for table in self._uses}

    @property
    def are_too_many(self) -> bool:
        """Whether there may be more than are kept."""
        return len(self._uses) > self._most

    def let_go(self, in_use: Collection[int]) -> list[BuiltGraph]:
        """Forget those graphs whose last use is the longest ago, if there are too many; gives them.

        in_use: numbers of graphs that stay.
        """
        states = (self._graphs, *self._turns.values(), self._former)
        kept = {built.table: built for graphs in states for built in graphs.values()}
        self._uses = {table: None for table in self._uses if table in kept}
        surplus = max(0, len(self._uses) - self._most)
        old = [kept[table] for table in self._uses if table not in in_use][:surplus]
        tables = {built.table for built in old}
        for graphs in states:
            for signature in [signature for signature, built in graphs.items() if built.table in tables]:
                self._gone[hash(signature)] = None
                del graphs[signature]
        for table in tables:
            del self._uses[table]
        self._gone = dict.fromkeys(list(self._gone)[-REMEMBERED:])
        return old

    def planned(self) -> BuiltGraph | None:
        """The graph of the call that the plan was made for.

        None if the denoiser is the plan's and needs other arguments by now, as one does to which an IP-Adapter was
        added: then its first call shows how it is called.

        Raises:
            PlanMismatch: the denoiser cannot be traced.
            OtherDenoiser: it cannot be traced with the plan's arguments, or its graph is not the plan's.
        """
        try:
            built = self._trace(self._calls.planned_example, self._calls.roles({}), same_denoiser=False)
        except TraceError as error:
            if isinstance(error, ForwardFailed) and self._has_plans_modules():
                _LOGGER.warning(
                    "%s cannot be traced with the arguments that the plan was made for (%s); its first call will be "
                    "traced instead",
                    type(self._denoiser).__name__,
                    reason_of(error),
                )
                return None
            other = (
                f"the plan was made for {self._plan.origin}, and this {type(self._denoiser).__name__} cannot be traced"
            )
            if not isinstance(error, ForwardFailed):  # with no arguments, so that no other plan fits it, either
                raise PlanMismatch(f"{other}: {error}") from error
            raise OtherDenoiser(f"{other} with its arguments ({reason_of(error)}); make a plan for this one") from error
        except PartitionerError as error:
            raise OtherDenoiser(str(error)) from error
        self._graphs[graph_signature(built.graph)] = built
        self._uses[built.table] = None
        self._is_plans = True
        return built

    def _has_plans_modules(self) -> bool:
        """Whether the denoiser is of the plan's class and has all modules that the plan places nodes of."""
        modules = {name for name, _ in self._denoiser.named_modules()}
        placed = {key.split("/")[0].split("@")[0] for key in self._plan.placement}
        return type(self._denoiser).__name__ == self._plan.class_name and placed <= modules

    def graph_of(self, tensors: Tensors, form: CallForm, before_trace: Callable[[], object]) -> BuiltGraph:
        """The graph of a call with such arguments; traced if no such call has been seen, after ``before_trace``.

        Raises:
            InputError: the denoiser cannot be traced with them, or the plan does not fit the graph.
        """
        signature = call_signature(tensors, form)
        if signature not in self._graphs:
            before_trace()
            try:
                roles = self._calls.roles(tensors)
                built = self._trace(lambda: self._calls.example(tensors, form), roles, same_denoiser=self._is_plans)
            except PartitionerError as error:
                kind = InputError if isinstance(error, TraceError) else OtherCalls
                raise kind(self._why_refused(tensors, error)) from error
            self._graphs[signature] = self._known(signature, built)
            self._tell_again(signature)
        built = self._graphs[signature]
        self._uses.pop(built.table, None)
        self._uses[built.table] = None
        return built

    def _tell_again(self, signature: CallSignature) -> None:
        if hash(signature) in self._gone:
            warn_once(
                self._warned,
                f"a call was traced again, which takes seconds: more sizes or forms of calls take turns than the "
                f"{self._most} graphs that the engine keeps. Keep more of them with kept_graphs=",
                "traced again",
            )

    def _known(self, signature: CallSignature, built: BuiltGraph) -> BuiltGraph:
        """A graph that was just traced, or one that the denoiser had before, and that computes the same."""
        others = [graphs[signature] for graphs in self._turns.values() if signature in graphs]
        former = self._former.pop(signature, None)
        for other in (*others, former):
            if other is not None and other.graph.computes_as(built.graph):
                return other
        return replace(built, changed=True) if former is not None else built

    def _why_refused(self, tensors: Tensors, error: PartitionerError) -> str:
        """What is wrong with a call and what to do, in a sentence or two."""
        differences = self._calls.differences(tensors)
        given = f" It differs from the plan's calls: {differences}." if differences else ""
        reason = reason_of(error)
        if isinstance(error, TraceError):
            mismatch = self._calls.dtype_mismatch(tensors)
            if mismatch:
                return f"the denoiser cannot take this call ({reason}); {mismatch}"
            advice = " Call it as the plan's calls do" if differences and isinstance(error, ForwardFailed) else ""
            return f"the denoiser cannot be traced for this call ({reason}).{given}{advice}"
        return (
            f"the plan does not fit this call ({reason}).{given} Make a plan for such calls, from such arguments, with "
            f"partitioner.compile(denoiser, example_inputs, roles, devices={self._plan.ranks})"
        )

    def _trace(
        self, example: Callable[[], Mapping[str, Any]], roles: Mapping[str, str], *, same_denoiser: bool
    ) -> BuiltGraph:
        try:
            check_in_memory(self._denoiser)
        except PlanMismatch as error:
            raise TraceError(str(error)) from error
        with traceable(self._denoiser):
            graph = trace(self._traced(), example(), roles, model=self._plan.model)
        if not same_denoiser and not self._plan.is_of_modified(graph):
            self._plan.check(graph)
        placement = self._plan.place(graph, same_denoiser=same_denoiser)
        return BuiltGraph(next(self._tables), graph, *build_specs(graph, placement, self._plan.components))
