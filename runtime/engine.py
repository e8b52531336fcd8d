"""Engine: starts the ranks of a plan, drives them through every denoiser call, and ends them."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

import torch
from torch import nn

from partitioner.errors import PartitionerError
from partitioner.ir import Argument, Parameter, Ref, Role, TracedGraph
from partitioner.plan import Plan, rank_of, seat_of
from partitioner.schedule import Run, Schedule
from partitioner.trace import bind_arguments, flatten_arguments, trace
from runtime.component import ComponentSpec, PreambleSpec, build_specs
from runtime.errors import EngineClosed, InputError, PlanMismatch
from runtime.lookahead import Course, Forecast, course_of
from runtime.preamble import PreambleRunner
from runtime.ranks import EmulatedRanks, ProcessRanks, Ranks, ThreadRanks
from runtime.serve import Report
from runtime.transport import Key
from runtime.weights import parameters_of
from runtime.worker import PARAMETER_CONTEXT, Build, Evaluate, Load, Setup

TRANSPORTS = ("processes", "threads", "emulation")
Signature = tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class EngineOptions:
    """How to run a plan; None: as the plan says.

    exact: every step exact (the plan's split, no lag). threads: torch threads per rank process (0: torch's own
    default). step_timeout_s: longest wait for one message before the engine ends with RankStalled.
    """

    transport: str = "processes"
    exact: bool = False
    warmup: int | None = None
    predictor: str | None = None
    mode: str | None = None
    check_finite: bool = False
    threads: int = 1
    step_timeout_s: float = 300.0
    startup_timeout_s: float = 120.0


@dataclass(frozen=True)
class Stats:
    """What has been done since the start. steps: denoiser calls of the engine, exact_steps those without lag;
    exact_ms, async_ms: mean time of an exact and of another call, None where there was none. ranks: by rank."""

    steps: int
    exact_steps: int
    exact_ms: float | None
    async_ms: float | None
    ranks: tuple[Report, ...]


@dataclass(frozen=True)
class _Graph:
    """A traced graph that the ranks have built, under the number ``table``."""

    table: int
    graph: TracedGraph
    specs: Sequence[ComponentSpec]
    preamble_spec: PreambleSpec


@dataclass(frozen=True)
class _Seen:
    """A prompt input as it was last seen: the caller's tensor, its version then, and what it held."""

    tensor: torch.Tensor
    version: int
    copy: torch.Tensor


@dataclass
class _Context:
    """What the driver remembers of one cache context."""

    number: int
    graph: _Graph | None = None
    branches: int = 0
    calls: int = 0  # of this trajectory
    base: int = 0  # step number of this trajectory's call 0
    next_base: int = 0
    marker: object = None  # the scheduler's timesteps, or the last timestep's value
    prompts: dict[str, _Seen] = field(default_factory=dict)
    unannounced: list[list[list[int]]] = field(default_factory=list)  # [reader][source] -> steps
    schedule: Schedule | None = None
    course: Course | None = None
    forecasts: dict[str, Forecast] = field(default_factory=dict)  # look-ahead: by latent input


class Engine:
    """Runs a denoiser by a plan: call it like the denoiser, it returns the denoiser's output as a tuple.

    scheduler: gives the pipeline's scheduler, from which a trajectory's start and course are seen; without one a
    start is seen from the timestep, which falls within a trajectory, and look-ahead plans run async. Use it as a context manager, or call ``close``.
    Raises PlanMismatch before anything is started, StartupError if a rank does not start, and the errors of
    runtime.errors from a call.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        plan: Plan,
        options: EngineOptions | None = None,
        *,
        devices: Sequence[str] | None = None,
        scheduler: Callable[[], Any] | None = None,
    ) -> None:
        self.plan = plan
        self.options = options or EngineOptions()
        self._denoiser = denoiser
        self._scheduler = scheduler
        self._graphs: dict[Signature, _Graph] = {}
        self._preambles: dict[int, PreambleRunner] = {}
        self._contexts: dict[str, _Context] = {}
        self._context_name = ""
        self._lists = 0
        self._loaded: list[set[str]] = [set() for _ in range(plan.ranks)]
        self._call_seconds: dict[bool, list[float]] = {True: [], False: []}  # by whether the call was exact
        self._closed = False
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        self._roles = {item.path: item.role for item in plan.inputs}
        first = self._trace_as_planned()
        self._ranks = self._start(devices or ["cpu"] * plan.ranks)
        try:
            self._distribute(first)
        except BaseException:
            self.close()
            raise
        self._graphs[self._signature(first.graph)] = first

    # ---- start

    def _trace_as_planned(self) -> _Graph:
        """The graph for the plan's own inputs; in the denoiser's dtype, should that be another."""
        try:
            dtype = next((t.dtype for t in self._denoiser.parameters() if t.is_floating_point()), torch.float32)
            latent = next(item for item in self.plan.inputs if item.role == "latent")
            arguments: dict[str, Any] = {}
            for item in self.plan.inputs:
                wanted = dtype if item.dtype == latent.dtype else getattr(torch, item.dtype)
                _place(arguments, item.path, torch.zeros(item.shape, dtype=wanted))
            for literal in self.plan.literals:
                _place(arguments, literal.path, literal.value)
            return self._trace(arguments)
        except PartitionerError as error:
            raise PlanMismatch(str(error)) from error

    def _trace(self, arguments: Mapping[str, Any]) -> _Graph:
        graph = trace(self._denoiser, arguments, self._roles, model=self.plan.model)
        self.plan.check(graph)
        placement = self.plan.place(graph)
        return _Graph(len(self._graphs), graph, *build_specs(graph, placement, self.plan.components))

    def _start(self, devices: Sequence[str]) -> Ranks:
        plan, options = self.plan, self.options
        if options.transport not in TRANSPORTS:
            raise InputError(f"transport is one of {', '.join(TRANSPORTS)}; got {options.transport!r}")
        if len(devices) != plan.ranks:
            raise PlanMismatch(
                f"the plan needs {plan.ranks} devices ({plan.branches} branches of {plan.components} components), "
                f"got {len(devices)}: {', '.join(devices)}; make a plan with --devices {len(devices)}"
            )
        setups = []
        for rank, device in enumerate(devices):
            branch, component = seat_of(rank, plan.components)
            setups.append(
                Setup(
                    rank=rank,
                    component=component,
                    ranks_of=tuple(rank_of(branch, k, plan.components) for k in range(plan.components)),
                    device=device,
                    predictor=options.predictor or plan.predictor,
                    check_finite=options.check_finite,
                )
            )
        if options.transport == "emulation":
            return EmulatedRanks(setups)
        if options.transport == "threads":
            return ThreadRanks(setups, options.step_timeout_s)
        return ProcessRanks(
            setups,
            plan_hash=int(plan.digest[:15], 16),
            threads=options.threads,
            startup_timeout_s=options.startup_timeout_s,
            step_timeout_s=options.step_timeout_s,
        )

    def _distribute(self, built: _Graph) -> None:
        """Give every rank its component of a graph, and the parameters that it does not have yet."""
        for rank in range(self.plan.ranks):
            spec = built.specs[seat_of(rank, self.plan.components)[1]]
            build = Build(built.table, spec)
            needed = {p.path: p for p in (*spec.parameters, *(built.preamble_spec.parameters if rank == 0 else ()))}
            missing = tuple(p for path, p in needed.items() if path not in self._loaded[rank])
            self._loaded[rank].update(p.path for p in missing)
            if rank == 0:
                self._ranks.worker.build(build)
                self._ranks.worker.parameters.update(parameters_of(self._denoiser, missing))
            else:
                self._ranks.command(rank, build)
                self._send_parameters(rank, missing)
        worker = self._ranks.worker
        self._preambles[built.table] = PreambleRunner(built.preamble_spec, worker.parameters, worker.device)
        self._ranks.wait_loaded()

    def _send_parameters(self, rank: int, missing: tuple[Parameter, ...]) -> None:
        self._lists += 1
        load = Load(-self._lists, missing)
        mailbox = self._ranks.worker.mailbox
        self._ranks.command(rank, load)
        mailbox.register(load.table, load.wires)
        for index, tensor in enumerate(parameters_of(self._denoiser, missing).values()):
            mailbox.send([rank], Key(load.table, index, PARAMETER_CONTEXT, 0), tensor)

    # ---- calls

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """One denoiser call; arguments and output as the denoiser's own with return_dict=False."""
        with self._lock:
            if self._closed:
                raise EngineClosed("the engine is closed; start another one") from self._failure
            tensors, literals = self._arguments(args, kwargs)
            try:
                with torch.no_grad():
                    return self._call(tensors, literals)
            except InputError:
                raise
            except BaseException as error:  # also an interrupt: ranks may be halfway, so nothing can go on
                self._failure = error
                self._end()
                raise

    def in_context(self, name: str) -> None:
        """Calls from here on belong to the cache context ``name`` ("" is the default one)."""
        self._context_name = name

    def _arguments(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[dict[str, torch.Tensor], dict[str, Argument]]:
        """Tensors and literals by path; InputError for what does not fit the denoiser's signature."""
        try:
            arguments = bind_arguments(self._denoiser, args, kwargs)
            arguments = {name: value for name, value in arguments.items() if value is not None}
            arguments.pop("return_dict", None)
            for item in self.plan.inputs:
                if item.role == "timestep" and isinstance(arguments.get(item.path), (int, float)):
                    dtype = getattr(torch, item.dtype)
                    arguments[item.path] = torch.full(item.shape, arguments[item.path], dtype=dtype)
            tensors, literals = flatten_arguments(arguments)
        except (TypeError, PartitionerError) as error:
            raise InputError(f"the denoiser cannot be called like this: {error}") from error
        planned = {item.path: item for item in self.plan.inputs}
        missing, extra = planned.keys() - tensors.keys(), tensors.keys() - planned.keys()
        if missing or extra:
            raise InputError(
                "this call's tensor arguments differ from the plan's: "
                + "; ".join(f"{', '.join(sorted(s))} {w}" for s, w in ((missing, "missing"), (extra, "not in it")) if s)
                + f". Make a plan for such calls: partition-model --model {self.plan.model} --devices {self.plan.ranks}"
            )
        for path, tensor in tensors.items():
            if tensor.dim() != len(planned[path].shape):
                raise InputError(
                    f"{path} has {tensor.dim()} dimensions ({list(tensor.shape)}), the plan has "
                    f"{len(planned[path].shape)} ({list(planned[path].shape)})"
                )
            if planned[path].role == "timestep" and planned[path].dtype == "float32" and not tensor.is_floating_point():
                tensors[path] = tensor.float()  # lossless below 2**24, and schedulers differ in the dtype they use
        return tensors, literals

    def _call(self, tensors: Mapping[str, torch.Tensor], literals: Mapping[str, Argument]) -> tuple[Any, ...]:
        halves = self._halves(tensors)
        built = self._graph_for(halves[0], literals)
        context = self._contexts.setdefault(self._context_name, _Context(len(self._contexts)))
        fresh = self._fresh_prompts(context, built, tensors)
        start = self._trajectory_starts(context, built, len(halves), tensors, bool(fresh))
        if start:
            context.graph, context.branches, context.calls = built, len(halves), 0
            context.base = context.next_base
            context.unannounced = [[[] for _ in range(self.plan.components)] for _ in range(self.plan.components)]
            self._start_trajectory(context, built, tensors)
            fresh = tuple(item.name for item in built.graph.inputs if item.role <= Role.PROMPT)
        for path, forecast in context.forecasts.items():
            forecast.observe(tensors[path])
        schedule = context.schedule
        assert schedule is not None
        runs = schedule.runs(context.calls)
        inputs = {run.call: halves if run.call == context.calls else self._predicted(context, run.call, tensors) for run in runs}
        begin = time.perf_counter()
        results = self._issue(context, runs, inputs, fresh, start)
        exact = schedule.is_exact(context.calls)
        self._call_seconds[exact].append(time.perf_counter() - begin)
        context.calls += 1
        context.next_base = context.base + max(context.calls, *(run.call + 1 for run in runs))
        return results

    def _start_trajectory(self, context: _Context, built: _Graph, tensors: Mapping[str, torch.Tensor]) -> None:
        """Choose the mode: look-ahead where the trajectory's course is known, else async."""
        mode = "exact" if self.options.exact else (self.options.mode or self.plan.mode)
        warmup = self.options.warmup or self.plan.warmup
        context.course, context.forecasts = None, {}
        if mode == "lookahead" and self.plan.components > 1:
            timestep = self._timestep(built, tensors)
            scheduler = self._scheduler() if self._scheduler is not None else None
            context.course = course_of(scheduler, timestep) if timestep is not None else None
            if context.course is None:
                mode = "async"
            else:
                # the first prediction needs the slope of one move, and is made components - 1 calls ahead
                warmup = max(warmup, self.plan.components)
                reach = self.plan.components - 1
                context.forecasts = {
                    item.name: Forecast(context.course, reach) for item in built.graph.inputs if item.role is Role.LATENT
                }
        context.schedule = Schedule(
            self.plan.components,
            mode,
            warmup,
            self.plan.periods,
            calls=context.course.calls if context.course is not None else None,
        )

    def _timestep(self, built: _Graph, tensors: Mapping[str, torch.Tensor]) -> float | None:
        path = next((item.name for item in built.graph.inputs if item.role is Role.TIMESTEP), None)
        return float(tensors[path].flatten()[0]) if path is not None else None

    def _predicted(
        self, context: _Context, call: int, tensors: Mapping[str, torch.Tensor]
    ) -> list[dict[str, torch.Tensor]]:
        """The inputs of a later call, per branch: predicted latents, that call's timestep, all else as now."""
        assert context.course is not None and context.graph is not None
        later = dict(tensors)
        for item in context.graph.graph.inputs:
            if item.role is Role.LATENT:
                later[item.name] = context.forecasts[item.name].predict(call)
            elif item.role is Role.TIMESTEP:
                later[item.name] = context.course.timestep(call, tensors[item.name])
        return self._halves(later)

    def _halves(self, tensors: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """The inputs of each branch: the rows are split evenly; one branch takes all where they cannot be."""
        planned = {item.path: item for item in self.plan.inputs}
        latent = next(path for path, item in planned.items() if item.role == "latent")
        rows = tensors[latent].shape[0]
        count = self.plan.branches if rows % self.plan.branches == 0 else 1
        if count == 1:
            return [dict(tensors)]
        halves: list[dict[str, torch.Tensor]] = [{} for _ in range(count)]
        for path, tensor in tensors.items():
            per_row = planned[path].shape[0] // planned[latent].shape[0] if planned[path].shape else 0
            # something per row (a prompt, a frame of one) is split; what has no row dimension is shared
            split = per_row > 0 and tensor.shape[0] == per_row * rows
            parts = tensor.chunk(count) if split else (tensor,) * count
            for half, part in zip(halves, parts, strict=True):
                half[path] = part
        return halves

    def _graph_for(self, tensors: Mapping[str, torch.Tensor], literals: Mapping[str, Argument]) -> _Graph:
        """The graph of these shapes; traced and distributed if it is new."""
        signature = _signature(((p, tuple(t.shape), str(t.dtype)) for p, t in tensors.items()), literals.items())
        if signature not in self._graphs:
            arguments: dict[str, Any] = {}
            for path, tensor in tensors.items():
                _place(arguments, path, torch.zeros(tensor.shape, dtype=tensor.dtype))
            for path, literal in literals.items():
                _place(arguments, path, literal)
            arguments["return_dict"] = False
            try:
                built = self._trace({k: v for k, v in arguments.items() if k in self._accepted()})
            except PartitionerError as error:
                raise InputError(
                    f"the plan does not fit this call ({error}). Make a plan for it: partition-model --model "
                    f"{self.plan.model} --devices {self.plan.ranks} with its --height, --width, --frames or --batch"
                ) from error
            self._distribute(built)
            self._graphs[signature] = built
        return self._graphs[signature]

    def _accepted(self) -> set[str]:
        return set(inspect.signature(self._denoiser.forward).parameters)

    def _signature(self, graph: TracedGraph) -> Signature:
        return _signature(
            ((i.name, i.meta.shape, f"torch.{i.meta.dtype}") for i in graph.inputs), graph.literals
        )

    def _fresh_prompts(
        self, context: _Context, built: _Graph, tensors: Mapping[str, torch.Tensor]
    ) -> tuple[str, ...]:
        """The prompt inputs that are not what they were at the last call."""
        fresh = []
        for item in built.graph.inputs:
            if item.role > Role.PROMPT:
                continue
            tensor = tensors[item.name]
            version = 0 if tensor.is_inference() else tensor._version
            known = context.prompts.get(item.name)
            if known is not None and known.tensor is tensor and known.version == version and not tensor.is_inference():
                continue
            if known is None or not _same(known.copy, tensor):
                fresh.append(item.name)
                context.prompts[item.name] = _Seen(tensor, version, tensor.detach().clone())
            else:
                context.prompts[item.name] = _Seen(tensor, version, known.copy)
        return tuple(fresh)

    def _trajectory_starts(
        self, context: _Context, built: _Graph, branches: int, tensors: Mapping[str, torch.Tensor], fresh: bool
    ) -> bool:
        scheduler = self._scheduler() if self._scheduler is not None else None
        marker: object = getattr(scheduler, "timesteps", None)
        before, context.marker = context.marker, marker
        if marker is not None:
            moved_back = marker is not before
        else:
            now = self._timestep(built, tensors) or 0.0
            context.marker = now
            moved_back = not isinstance(before, float) or now > before
        if not moved_back and context.course is not None:
            # another timestep than was looked ahead to: start over
            moved_back = not context.course.expects(context.calls, self._timestep(built, tensors) or 0.0)
        return moved_back or fresh or context.graph is not built or context.branches != branches

    def _issue(
        self,
        context: _Context,
        runs: Sequence[Run],
        inputs: Mapping[int, Sequence[Mapping[str, torch.Tensor]]],
        fresh: tuple[str, ...],
        start: bool,
    ) -> tuple[Any, ...]:
        """Send inputs and commands for ``runs``, do the driver's own, and join the branches' results."""
        built = context.graph
        assert built is not None
        if fresh:
            for branch, half in enumerate(inputs[context.calls]):
                self._preambles[built.table].refresh(context.number, branch, half)
            fresh += tuple(wire.value for wire in built.specs[0].wires if wire.source is None and wire.role is Role.PROMPT)
        for run in runs:
            for reader in context.unannounced:
                reader[run.component].append(context.base + run.call)
        observe = context.schedule is not None and context.schedule.mode == "async"
        own: Evaluate | None = None
        for run in runs:
            arrivals = context.unannounced[run.component]
            command = Evaluate(
                table=built.table,
                context=context.number,
                step=context.base + run.call,
                reads=tuple(context.base + call for call in run.reads),
                arrivals=tuple(map(tuple, arrivals)) if observe else (),
                fresh=fresh,
                start=start,
                observe=observe,
            )
            context.unannounced[run.component] = [[] for _ in arrivals]
            for branch, half in enumerate(inputs[run.call]):
                rank = rank_of(branch, run.component, self.plan.components)
                if rank == 0:
                    assert own is None, "the driver's component runs one call at a time"
                    own = command
                else:
                    self._ranks.command(rank, command)
                self._send_inputs(rank, built, command, half)
        assert own is not None
        results = [self._ranks.run(self._ranks.worker.evaluate(own))]
        results += [self._ranks.run(self._ranks.worker.results_of(own)) for _ in inputs[context.calls][1:]]
        return tuple(
            torch.cat([part[item.name] for part in results]) if isinstance(item, Ref) else item
            for item in built.graph.results
        )

    def _send_inputs(
        self, rank: int, built: _Graph, command: Evaluate, half: Mapping[str, torch.Tensor]
    ) -> None:
        """Send a rank what it reads of an evaluation's inputs and of the preamble's values."""
        branch, component = seat_of(rank, self.plan.components)
        spec = built.specs[component]
        read = set(spec.program.inputs)
        preamble = self._preambles[built.table]
        values = dict(half)
        if not read.isdisjoint(preamble.values):
            values |= preamble.compute(command.context, branch, half)
        mailbox = self._ranks.worker.mailbox
        for index, wire in enumerate(spec.wires):
            if wire.source is None and wire.value in read and (wire.role > Role.PROMPT or wire.value in command.fresh):
                # a copy: the caller may write to its tensor while a rank still reads
                tensor = values[wire.value].detach().clone()
                key = Key(command.table, index, command.context, command.step)
                if rank == 0:
                    mailbox.deliver(key, tensor)
                else:
                    mailbox.send([rank], key, tensor)

    # ---- end

    @property
    def stats(self) -> Stats:
        """Steps, bytes, waits and memory, per rank."""
        with self._lock:
            exact, lagged = self._call_seconds[True], self._call_seconds[False]
            return Stats(
                steps=len(exact) + len(lagged),
                exact_steps=len(exact),
                exact_ms=1e3 * mean(exact) if exact else None,
                async_ms=1e3 * mean(lagged) if lagged else None,
                ranks=tuple(self._ranks.reports()),
            )

    def close(self) -> None:
        """End the ranks; nothing is left running. May be called again."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if not self._closed:
            self._closed = True
            self._ranks.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _signature(tensors: Any, literals: Any) -> Signature:
    """What a traced graph depends on: shapes, dtypes and the literals that change it."""
    kept = sorted((path, repr(value)) for path, value in literals if path != "return_dict" and value is not None)
    return (*sorted(tensors), *kept)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)


def _place(arguments: dict[str, Any], path: str, value: Any) -> None:
    """Put a value at its path: "a.b" is key b of the dict that is argument a."""
    *parents, last = path.split(".")
    for parent in parents:
        arguments = arguments.setdefault(parent, {})
    arguments[last] = value


