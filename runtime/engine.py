"""Engine: starts the ranks of a plan, drives them through every denoiser call, and ends them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from partitioner.errors import PartitionerError, TraceError, first_line
from partitioner.graph.export import trace
from partitioner.graph.ir import Parameter, Ref, Role
from partitioner.plan.plan import Plan
from partitioner.plan.ranks import rank_of, seat_of
from partitioner.plan.schedule import Run
from partitioner.plan.timeline import Timeline
from partitioner.search.problem import KEPT_MESSAGES
from runtime.devices.acceleration import check_acceleration
from runtime.devices.memory import check_memory, give_back, local_places
from runtime.driver.call_arguments import CallReader, Literals, Signature, Tensors, call_signature, graph_signature
from runtime.driver.dispatch import Batch
from runtime.driver.preamble import PreambleRunner
from runtime.driver.traced_graphs import BuiltGraph
from runtime.driver.trajectory import RunMode, Trajectory
from runtime.errors import EngineClosed, InputError, PlanMismatch
from runtime.options import TRANSPORTS, EngineOptions
from runtime.ranks.base import Ranks
from runtime.ranks.emulated import EmulatedRanks
from runtime.ranks.launch import Launcher, LocalLauncher
from runtime.ranks.processes import ProcessRanks
from runtime.ranks.threads import ThreadRanks
from runtime.ranks.torchrun_driver import torchrun_launcher
from runtime.stats import Stats
from runtime.torchrun import join
from runtime.transport.mailbox import MessageKey
from runtime.transport.weights import Weights
from runtime.worker.commands import Build, Evaluate, Join, Load, Setup
from runtime.worker.microbatches import can_join
from runtime.worker.recording import Recorder, assemble
from runtime.worker.specs import build_specs
from runtime.worker.worker import PARAMETER_CONTEXT, Waiting, together


class Engine:
    """Runs a denoiser by a plan: call it like the denoiser, it returns the denoiser's output as a tuple.

    scheduler: gives the pipeline's scheduler, from which a trajectory's start and course are seen; without one a
    start is seen from the timestep, which falls within a trajectory, and look-ahead plans run async. Use it as a
    context manager, or call ``close``.
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
        if self.options.transport == "processes":
            join(self.options.startup_timeout_s)
        self._denoiser = denoiser
        self._scheduler = scheduler
        self._graphs: dict[Signature, BuiltGraph] = {}
        self._preambles: dict[int, PreambleRunner] = {}
        self._trajectories: dict[str, Trajectory] = {}
        self._context_name = ""
        self._lists = 0
        self._loaded: list[set[str]] = [set() for _ in range(plan.ranks)]
        self._spent = {True: (0, 0.0), False: (0, 0.0)}  # (calls, seconds) by whether the call was exact
        self._recorded_calls: list[tuple[float, float]] = []
        self._closed = False
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        self._calls = CallReader(denoiser, plan)
        self._weights = Weights(denoiser)
        try:
            first = self._trace(self._calls.planned_example)
        except TraceError as error:
            raise PlanMismatch(
                f"the plan was made for {plan.origin}, and this {type(denoiser).__name__} cannot be traced with its "
                f"arguments ({first_line(error).rstrip('.')}); make a plan for this one: partition-model "
                f"--model FOLDER --devices {plan.ranks}"
            ) from error
        except PartitionerError as error:
            raise PlanMismatch(str(error)) from error
        give_back()  # what tracing took
        self._ranks = self._start(devices or ["cpu"] * plan.ranks)
        try:
            self._ranks.stream.call(lambda: self._distribute(first))
            if self._releases:
                self._weights.release(self._loaded[0])
        except BaseException:
            self.close()
            raise
        self._graphs[graph_signature(first.graph)] = first

    # ---- start

    def _trace(self, example: Callable[[], Mapping[str, Any]]) -> BuiltGraph:
        roles = {item.path: item.role for item in self.plan.inputs}
        with self._weights.traceable():
            graph = trace(self._denoiser, example(), roles, model=self.plan.model)
        if not getattr(self._denoiser, "peft_config", None):
            self.plan.check(graph)  # a LoRA changes the graph; its layers follow those that they wrap
        placement = self.plan.place(graph)
        return BuiltGraph(len(self._graphs), graph, *build_specs(graph, placement, self.plan.components))

    def _start(self, devices: Sequence[str]) -> Ranks:
        plan, options = self.plan, self.options
        if options.transport not in TRANSPORTS:
            raise InputError(f"transport is one of {', '.join(TRANSPORTS)}; got {options.transport!r}")
        if len(devices) != plan.ranks:
            raise PlanMismatch(
                f"the plan needs {plan.ranks} devices ({plan.branches} branches of {plan.components} components), "
                f"got {len(devices)}: {', '.join(devices)}; make a plan with --devices {len(devices)}"
            )
        check_acceleration(
            options.transport, devices, cuda_graphs=options.cuda_graphs, green_contexts=options.green_contexts
        )
        first = next(self._denoiser.parameters(), None)
        held_on = str(first.device) if first is not None and options.transport != "processes" else None
        launcher: Launcher | None = None
        places = local_places(devices)
        if options.transport == "processes":
            launcher = torchrun_launcher(plan.ranks) or LocalLauncher()
            places = launcher.places(devices, options.startup_timeout_s)
        check_memory(plan, places, held_on=held_on)
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
                    record=options.record,
                    compile=options.compile,
                    cuda_graphs=options.cuda_graphs,
                    result_ranks=tuple(rank_of(b, component, plan.components) for b in range(1, plan.branches))
                    if rank == 0
                    else (),
                )
            )
        if options.transport == "emulation":
            return EmulatedRanks(setups)
        if options.transport == "threads":
            return ThreadRanks(setups, options.step_timeout_s, green_contexts=options.green_contexts)
        assert launcher is not None  # as the transport is checked above
        return ProcessRanks(
            setups,
            launcher,
            plan_hash=int(plan.digest[:15], 16),
            threads=options.threads,
            startup_timeout_s=options.startup_timeout_s,
            step_timeout_s=options.step_timeout_s,
        )

    def _distribute(self, built: BuiltGraph) -> None:
        """Give every rank its component of a graph, and the parameters that it does not have yet."""
        worker = self._ranks.worker
        for rank in range(self.plan.ranks):
            spec = built.specs[seat_of(rank, self.plan.components)[1]]
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
    def _releases(self) -> bool:
        """Whether parameters that only other ranks need leave this process."""
        return self.options.transport == "processes" and not self.options.keep_weights

    def _send_parameters(self, rank: int, missing: tuple[Parameter, ...]) -> None:
        """Tell a rank to read parameters from files, and send it those that stand in none."""
        self._lists += 1
        files = self._weights.files_of(missing) if self.options.transport == "processes" else {}
        files = self._ranks.readable(rank, files)
        sent = tuple(p for p in missing if p.path not in files)
        stored = tuple(p for p in missing if p.path in files)
        offsets = self._weights.offsets_of((*sent, *stored))
        load = Load(-self._lists, sent, tuple((p, files[p.path]) for p in stored), offsets)
        mailbox = self._ranks.worker.mailbox
        self._ranks.command(rank, load)
        mailbox.register(load.table, load.wires)
        for index, tensor in enumerate(self._weights.tensors_of(sent).values()):
            mailbox.send([rank], MessageKey(load.table, index, PARAMETER_CONTEXT, 0), tensor)

    # ---- calls

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """One denoiser call; arguments and output as the denoiser's own with return_dict=False."""
        with self._lock:
            self._check_open()
            tensors, literals = self._calls.read(args, kwargs)
            try:
                with torch.no_grad():
                    return self._ranks.stream.call(lambda: self._call(tensors, literals))
            except InputError:
                raise
            except BaseException as error:  # also an interrupt: ranks may be halfway, so nothing can go on
                self._failure = error
                self._end()
                raise

    def in_context(self, name: str) -> None:
        """Calls from here on belong to the cache context ``name`` ("" is the default one)."""
        self._context_name = name

    def _call(self, tensors: Tensors, literals: Literals) -> tuple[Any, ...]:
        started = Recorder.now()
        home = next(iter(tensors.values())).device
        tensors = {path: tensor.to(self._ranks.worker.device) for path, tensor in tensors.items()}
        halves = self._calls.halves(tensors)
        built = self._graph_for(halves[0], literals)
        part = self._graph_of_part(built, halves[0], literals)
        trajectory = self._trajectory()
        scheduler = self._scheduler() if self._scheduler is not None else None
        trajectory.advance(built.graph, len(halves), tensors, scheduler)
        exact = trajectory.schedule.is_exact(trajectory.call)
        whole = Batch(built, trajectory.number)
        batches = [whole] if part is None or not exact else self._microbatches(part, whole, trajectory)
        begin = time.perf_counter()
        results = self._issue(whole, batches, trajectory, tensors)
        calls, seconds = self._spent[exact]
        self._spent[exact] = (calls + 1, seconds + time.perf_counter() - begin)
        if self.options.record:
            self._recorded_calls.append((started, Recorder.now()))
        return tuple(item.to(home) if isinstance(item, torch.Tensor) else item for item in results)

    def _graph_of_part(self, whole: BuiltGraph, tensors: Tensors, literals: Literals) -> BuiltGraph | None:
        """The graph of a micro-batch of such rows; None where they, or what travels, cannot be split."""
        parts = self._calls.parts(tensors, self.options.microbatches)
        if len(parts) == 1:
            return None
        part = self._graph_for(parts[0], literals)
        return part if can_join(whole.specs[0].wires, part.specs[0].wires, len(parts)) else None

    def _microbatches(self, part: BuiltGraph, whole: Batch, trajectory: Trajectory) -> list[Batch]:
        count = self.options.microbatches
        # no predictor looks further back
        read_lagged = trajectory.is_lagged and trajectory.call >= trajectory.schedule.warmup - KEPT_MESSAGES
        joins = [Join(whole.built.table, whole.context, i, count) if read_lagged else None for i in range(count)]
        return [Batch(part, whole.context + 1 + i, join) for i, join in enumerate(joins)]

    def _trajectory(self) -> Trajectory:
        if self._context_name not in self._trajectories:
            options, plan = self.options, self.plan
            manner = RunMode(
                components=plan.components,
                mode="exact" if options.exact else (options.mode or plan.mode),
                warmup=options.warmup or plan.warmup,
                periods=plan.periods,
            )
            numbers = 1 + options.microbatches
            self._trajectories[self._context_name] = Trajectory(numbers * len(self._trajectories), manner)
        return self._trajectories[self._context_name]

    def _graph_for(self, tensors: Tensors, literals: Literals) -> BuiltGraph:
        """The graph of such calls; traced and distributed if it is new."""
        signature = call_signature(tensors, literals)
        if signature not in self._graphs:
            try:
                built = self._trace(lambda: self._calls.example(tensors, literals))
            except PartitionerError as error:
                raise InputError(
                    f"the plan does not fit this call ({first_line(error).rstrip('.')}). Make a plan for it: "
                    f"partition-model --model {self.plan.model} --devices {self.plan.ranks} with its --height, "
                    "--width, --frames or --batch"
                ) from error
            self._distribute(built)
            self._graphs[signature] = built
        return self._graphs[signature]

    def _issue(
        self, whole: Batch, batches: Sequence[Batch], trajectory: Trajectory, tensors: Tensors
    ) -> tuple[Any, ...]:
        """Send this call's inputs and commands, do the driver's own part, and join what the ranks make."""
        graph = whole.built.graph
        heard = batches[0] is whole or batches[0].join is not None
        runs = trajectory.runs(heard)
        own: list[Evaluate] = []
        for call in dict.fromkeys(run.call for run in runs):
            now = call == trajectory.call
            halves = self._calls.halves(trajectory.inputs_at(call, graph, tensors))
            split = [self._calls.parts(half, len(batches) if now else 1) for half in halves]
            for part, batch in enumerate(batches if now else [whole]):
                own += self._tell(
                    batch, [parts[part] for parts in split], trajectory, [r for r in runs if r.call == call]
                )
        results = self._ranks.run(self._all_results(own, len(self._calls.halves(tensors))))
        outputs = [
            torch.cat([part[item.name] for part in results]) if isinstance(item, Ref) else item
            for item in graph.results
        ]
        if self.options.correct:
            outputs = [trajectory.correct(output) for output in outputs]
        trajectory.done(runs)
        return tuple(outputs)

    def _tell(
        self, batch: Batch, halves: Sequence[Tensors], trajectory: Trajectory, runs: Sequence[Run]
    ) -> list[Evaluate]:
        """Have one call's runs done on one batch; returns the driver's own."""
        built, context = batch.built, batch.context
        micro = context != trajectory.number
        prompts = tuple(item.name for item in built.graph.inputs if item.role <= Role.PROMPT)
        prompts += tuple(w.value for w in built.specs[0].wires if w.source is None and w.role is Role.PROMPT)
        starts = {run.component: trajectory.begin(context, run.component) for run in runs}
        preamble = self._preambles[built.table]
        values = []
        for branch, half in enumerate(halves):
            if any(starts.values()):
                preamble.refresh(context, branch, half)
            values.append({**half, **preamble.compute(context, branch, half)})
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
                rank = rank_of(branch, run.component, self.plan.components)
                if rank == 0:
                    own.append(command)
                else:
                    self._ranks.command(rank, command)
                self._send_inputs(rank, built, command, known)
        return own

    def _all_results(self, own: Sequence[Evaluate], branches: int) -> Waiting[list[dict[str, torch.Tensor]]]:
        """The driver's own part and the other branches' results: all waits of a step, so that it has one deadline."""
        worker = self._ranks.worker
        results = yield from together([worker.evaluate(command) for command in own], worker.mailbox)
        for _ in range(1, branches):
            for command in own:
                results.append((yield from worker.results_of(command)))
        return results

    def _send_inputs(self, rank: int, built: BuiltGraph, command: Evaluate, values: Tensors) -> None:
        """Send a rank what it reads of an evaluation's inputs and of the preamble's values."""
        spec = built.specs[seat_of(rank, self.plan.components)[1]]
        read = set(spec.program.inputs)
        mailbox = self._ranks.worker.mailbox
        for index, wire in enumerate(spec.wires):
            if wire.source is None and wire.value in read and (wire.role > Role.PROMPT or wire.value in command.fresh):
                # a copy: the caller may write to its tensor while a rank still reads
                tensor = values[wire.value].detach().clone()
                key = MessageKey(command.table, index, command.context, command.step)
                if rank == 0:
                    mailbox.deliver(key, tensor)
                else:
                    self._ranks.worker.hand_over([rank], key, wire.value, tensor)

    # ---- end

    @property
    def stats(self) -> Stats:
        """Steps, bytes, waits and memory, per rank."""
        with self._lock:
            self._check_open()
            (exact, exact_s), (lagged, lagged_s) = self._spent[True], self._spent[False]
            return Stats(
                steps=exact + lagged,
                exact_steps=exact,
                exact_ms=1e3 * exact_s / exact if exact else None,
                async_ms=1e3 * lagged_s / lagged if lagged else None,
                ranks=tuple(self._ranks.reports()),
            )

    def timeline(self) -> Timeline:
        """What every rank has done and when, for engines that record; see partitioner.plan.timeline."""
        reports = self.stats.ranks
        return assemble({rank: report.marks for rank, report in enumerate(reports)}, self._recorded_calls)

    def close(self) -> None:
        """End the ranks; nothing is left running, and the denoiser is whole again. May be called again."""
        with self._lock:
            self._end()
            self._weights.restore()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosed("the engine is closed; start another one") from self._failure

    def _end(self) -> None:
        self._closed = True
        self._ranks.close()  # every time: the last one may have been interrupted

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()
