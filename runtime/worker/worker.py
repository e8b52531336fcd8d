"""Worker: executes one rank's program, evaluation by evaluation.

A worker never decides: the driver's commands say which evaluation to run, in which cache context, and which message
each read uses. All that may have to wait for messages is written as a generator (runtime.worker.waiting).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from partitioner.graph.nodes import Role
from partitioner.plan.program import Compute, Receive, Send
from runtime.devices.memory import give_back, resident_bytes
from runtime.devices.spans import span
from runtime.transport.mailbox import PARAMETER_CONTEXT, Expected, Mailbox, MessageKey
from runtime.transport.weight_files import at_offset, read_stored
from runtime.worker.commands import DRIVER, Build, Evaluate, Forget, ForgetGraphs, Load, SendBack, Setup
from runtime.worker.component import Component
from runtime.worker.lagged import LaggedTensor
from runtime.worker.microbatches import PartsOfMessages
from runtime.worker.predictor import PREDICTORS, Hold
from runtime.worker.recording import Computed, Recorder, Sent, Taken
from runtime.worker.run_segment import check_finite, run_segment
from runtime.worker.segment import Segment
from runtime.worker.specs import ComponentSpec
from runtime.worker.static_values import static_values
from runtime.worker.waiting import Waiting


@dataclass
class _Context:
    """What a cache context keeps between the evaluations of a trajectory, by value name."""

    prompt_inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    prompt_values: dict[str, torch.Tensor] = field(default_factory=dict)
    lagged: dict[str, LaggedTensor] = field(default_factory=dict)


class Worker:
    """One rank's component and parameters, and what it has received and computed so far.

    Not thread-safe: one thread drives it, while others may fill the mailbox. After ``build``, and ``load`` for the
    parameters, each ``evaluate`` runs the program once.

    Args:
        setup: which rank and component this is, and how it works.
        mailbox: the rank's side of the transport.
        recorder: of the rank; None where nothing is recorded.
    """

    def __init__(self, setup: Setup, mailbox: Mailbox, recorder: Recorder | None = None) -> None:
        self.setup = setup
        self.mailbox = mailbox
        self.recorder = recorder
        self.device = torch.device(setup.device)
        self.parameters: dict[str, torch.Tensor] = {}  # by path in the denoiser's state
        self.steps_done = 0
        self.send_seconds = 0.0  # in handing over what was computed
        self.step: int | None = None  # of the evaluation begun last
        self.busy = False  # within an evaluation or a load
        self.begun = 0.0  # when the last of those was, in monotonic seconds
        self.started_bytes = resident_bytes()  # of the process, before this rank has anything
        self._components: dict[int, Component] = {}
        self._static: dict[int, dict[str, torch.Tensor]] = {}  # table -> parameters and constants by value name
        self._contexts: dict[int, _Context] = {}
        self._parts = PartsOfMessages()

    def build(self, command: Build) -> None:
        """Lower the component of a new graph. Its parameters may be loaded before or after."""
        spec = command.spec
        self._components[command.table] = Component(
            spec,
            self.device,
            compile=self.setup.compile,
            cuda_graphs=self.setup.cuda_graphs,
            copied=self._copied(spec),
        )
        senders: dict[str, tuple[int, ...]] = dict.fromkeys(spec.program.inputs, (DRIVER,))
        for step in spec.program.instructions:
            if isinstance(step, Receive):
                senders[step.value] = (self.setup.ranks_of[step.source],)
        expected = [Expected(wire.value, wire.meta, senders.get(wire.value, ())) for wire in spec.wires]
        wire_index = self._components[command.table].wire_index
        for rank in self.setup.result_ranks:
            expected += [Expected(r, spec.wires[wire_index[r]].meta, (rank,)) for r in spec.program.results]
        self.mailbox.register(command.table, expected)

    def _result_key(self, command: Evaluate, branch: int, value: str) -> MessageKey:
        """Of a result that a branch sends to the driver; behind the graph's wires each branch has some of its own."""
        spec = self._components[command.table].spec
        wire = len(spec.wires) + branch * len(spec.program.results) + spec.program.results.index(value)
        return MessageKey(command.table, wire, command.context, command.step)

    def _copied(self, spec: ComponentSpec) -> set[str]:
        """What this rank sends and the transport copies; the driver's results go to the caller as they are."""
        program = spec.program
        sent = {step.value for step in program.instructions if isinstance(step, Send)}
        sent = sent - set(program.results) if self.setup.rank == DRIVER else sent | set(program.results)
        return sent if self.mailbox.copies_sent else set()

    def is_settled(self, table: int) -> bool:
        """Whether later evaluations of a graph only repeat what the last ones did.

        Before that, CUDA graphs are captured. One that is forgotten will not be run.
        """
        component = self._components.get(table)
        return component is None or component.is_settled

    def waiting_for(self) -> tuple[str, int] | None:
        """The message that it waits for now, as (value, rank that sends it), or None. May be called by any thread."""
        key = self.mailbox.waiting_for
        if key is None:
            return None
        expected = self.mailbox.expected(key)
        return expected.value, expected.senders[0]

    def load(self, command: Load) -> Waiting[None]:
        """Read parameters from files and receive the others from the driver."""
        self.mailbox.register(command.table, command.wires)
        self.busy, self.begun = True, time.monotonic()
        count = len(command.parameters)
        for (parameter, file, digest), offset in zip(command.stored, command.offsets[count:], strict=True):
            stored = read_stored(file, parameter.path, parameter.meta, offset, digest)
            self.parameters[parameter.path] = stored.to(self.device)
        for index, parameter in enumerate(command.parameters):
            key = MessageKey(command.table, index, PARAMETER_CONTEXT, 0)
            received = yield from self._receive(key)
            self.parameters[parameter.path] = at_offset(received, command.offsets[index])
        self.mailbox.unregister([command.table])
        give_back()  # what parameters were received in, or read through
        self.busy = False

    def forget_graphs(self, command: ForgetGraphs) -> Waiting[None]:
        """Forget graphs and parameters; it takes its turn among evaluations, of which earlier ones need them."""
        yield from ()
        for table in command.tables:
            self._components.pop(table, None)
            self._static.pop(table, None)
        self.parameters = {now: self.parameters[before] for before, now in command.kept if before in self.parameters}
        self.mailbox.unregister(command.tables)
        give_back()

    def send_back(self, command: SendBack) -> None:
        """Send parameters to the driver, which has lost them."""
        self.mailbox.register(command.table, command.wires)
        for index, parameter in enumerate(command.parameters):
            key = MessageKey(command.table, index, PARAMETER_CONTEXT, 0)
            self.mailbox.send([DRIVER], key, self.parameters[parameter.path])
        self.mailbox.unregister([command.table])

    def receive_back(self, command: SendBack) -> Waiting[dict[str, torch.Tensor]]:
        """Take the parameters that another rank sends back, by path; the driver's worker only, told of its table."""
        received = {}
        for index, parameter in enumerate(command.parameters):
            key = MessageKey(command.table, index, PARAMETER_CONTEXT, 0)
            received[parameter.path] = yield from self._receive(key)
        return received

    def evaluate(self, command: Evaluate) -> Waiting[dict[str, torch.Tensor]]:
        """Run one evaluation; its value is the denoiser's results that this component computes, by value name.

        The caller turns gradients off. In order:

            1  where a trajectory starts, forget the one before
            2  take the inputs from the driver
            3  compute what depends on the prompt only, if the prompt is new (parameters and constants: once)
            4  compute what depends on the timestep
            5  the instructions: read a boundary tensor, compute a run of nodes, or send a boundary tensor
            6  send the results to the driver, where this rank is another
        """
        self.step, self.busy, self.begun = command.step, True, time.monotonic()
        component = self._components[command.table]
        context = self._contexts.setdefault(command.context, _Context())
        if command.start is not None:  # 1
            self._start_trajectory(context, command.context, command.start, command.ahead)
        # 2
        values = yield from self._read_inputs(component, context, command)
        # 3
        static = self._static_values(command.table, component)
        hoisted = component.hoisted
        if hoisted.prompt is not None and (command.fresh or not context.prompt_values):
            context.prompt_values = self._compute(hoisted.prompt, {**static, **context.prompt_inputs}, command)
        everything: dict[str, torch.Tensor] = {**static, **context.prompt_inputs, **context.prompt_values, **values}
        with component.evaluation() as running:
            if running.timestep is not None:  # 4
                everything |= self._compute(running.timestep, everything, command)
            # 5
            for index, step in enumerate(component.spec.program.instructions):
                if isinstance(step, Receive):
                    everything[step.value] = yield from self._read(component, context, command, step)
                elif isinstance(step, Compute):
                    everything |= self._compute(running.segments[index], everything, command)
                    for value in step.drops:
                        if value not in static and value not in context.prompt_values:
                            everything.pop(value, None)
                else:
                    ranks = tuple(self.setup.ranks_of[reader] for reader in step.readers)
                    key = MessageKey(command.table, component.wire_index[step.value], command.context, command.step)
                    self._send(key, step.value, ranks, everything[step.value])
        # 6
        results = {name: everything[name] for name in component.spec.program.results}
        if self.setup.rank != DRIVER:
            for name, tensor in results.items():  # of another branch, to be joined with the driver's
                self._send(self._result_key(command, self.setup.branch, name), name, (DRIVER,), tensor)
        self.steps_done += 1
        self.busy = False
        return results

    def forget(self, command: Forget) -> None:
        """Drop what is kept of a trajectory that has ended."""
        for number in command.contexts:
            self._contexts.pop(number, None)
            self.mailbox.forget(number, command.before_step)

    def let_go(self) -> None:
        """Drop all tensors: its rank has ended, and whoever keeps the engine is not to keep their memory."""
        self.parameters.clear()
        self._components.clear()
        self._static.clear()
        self._contexts.clear()

    @property
    def trajectories_kept(self) -> int:
        """Of how many trajectories, or micro-batches of one, it keeps something."""
        return len(self._contexts)

    def results_of(self, command: Evaluate, branch: int) -> Waiting[dict[str, torch.Tensor]]:
        """Take the results of an evaluation that the rank of another branch sends; the driver's worker only."""
        results = {}
        for name in self._components[command.table].spec.program.results:
            results[name] = yield from self._receive(self._result_key(command, branch, name))
        return results

    def _start_trajectory(self, context: _Context, number: int, first_step: int, ahead: int | None) -> None:
        context.lagged.clear()
        context.prompt_values = {}
        self.mailbox.forget(number, first_step, ahead)

    def _receive(self, key: MessageKey) -> Waiting[torch.Tensor]:
        start = Recorder.now()
        while not self.mailbox.ready(key):
            yield key
        tensor = self.mailbox.take(key)
        if tensor.device != self.device:  # between processes it travels through the host's memory
            tensor = tensor.to(self.device)
        if self.recorder is not None and key.context != PARAMETER_CONTEXT:
            name = self.mailbox.expected(key).value
            self.recorder.add(Taken(tuple(key), name, start, Recorder.now()))
        return tensor

    def _read_inputs(
        self, component: Component, context: _Context, command: Evaluate
    ) -> Waiting[dict[str, torch.Tensor]]:
        values: dict[str, torch.Tensor] = {}
        for wire in component.inputs:
            per_step = wire.role > Role.PROMPT
            if per_step or wire.value in command.fresh:
                key = MessageKey(command.table, component.wire_index[wire.value], command.context, command.step)
                tensor = yield from self._receive(key)
                (values if per_step else context.prompt_inputs)[wire.value] = tensor
        return values

    def _static_values(self, table: int, component: Component) -> dict[str, torch.Tensor]:
        """Parameters and constants by value name; constants are computed once."""
        if table not in self._static:
            self._static[table] = static_values(component.spec.parameters, self.parameters, component.hoisted.constant)
        return self._static[table]

    def _compute(
        self, segment: Segment, values: Mapping[str, torch.Tensor], command: Evaluate
    ) -> dict[str, torch.Tensor]:
        start = Recorder.now()
        with span(f"component {self.setup.component}: {segment.name}", self.device):
            made = run_segment(segment, values, self.setup, command.step)
        if self.recorder is not None:
            if self.device.type == "cuda":
                torch.cuda.current_stream(self.device).synchronize()  # so that the span is the work's, not its launch's
            name = f"step {command.step}: {segment.name}"
            self.recorder.add(Computed(name, start, Recorder.now()))
        if self.setup.check_finite:
            check_finite(segment, values, made, setup=self.setup, step=command.step)
        return made

    def _read(self, component: Component, context: _Context, command: Evaluate, step: Receive) -> Waiting[torch.Tensor]:
        """A boundary tensor: the message of the step that the command says, or the predictor's estimate."""
        wire = component.wire_index[step.value]
        newest = command.reads[step.source]
        key = MessageKey(command.table, wire, command.context, newest)
        if not command.observe:
            tensor = yield from self._receive(key)
            if command.join is not None:
                self._parts.take(command.join, key, tensor, self.mailbox)
            return tensor
        lagged = context.lagged.get(step.value)
        if lagged is None:
            floating = component.spec.wires[wire].meta.dtype.startswith(("float", "bfloat"))
            lagged = LaggedTensor(PREDICTORS[self.setup.predictor]() if floating else Hold())
            context.lagged[step.value] = lagged
        lagged.announce(command.arrivals[step.source])
        return (yield from lagged.read(command.step, newest, partial(self._receive_step, key)))

    def _receive_step(self, key: MessageKey, step: int) -> Waiting[torch.Tensor]:
        return (yield from self._receive(key._replace(step=step)))

    def _send(self, key: MessageKey, value: str, ranks: Sequence[int], tensor: torch.Tensor) -> None:
        start = time.perf_counter()
        self.hand_over(ranks, key, value, tensor)
        self.send_seconds += time.perf_counter() - start

    def hand_over(self, ranks: Sequence[int], key: MessageKey, value: str, tensor: torch.Tensor) -> None:
        """Send a tensor to other ranks, and record that.

        Args:
            ranks: its readers.
            key: of the message.
            value: the tensor's name, for the recording.
            tensor: what to send; not to be written to again.
        """
        if self.recorder is not None:
            size_bytes = tensor.numel() * tensor.element_size()
            self.recorder.add(Sent(tuple(key), tuple(ranks), value, size_bytes, Recorder.now()))
        self.mailbox.send(ranks, key, tensor)
