"""Worker: executes one rank's program, evaluation by evaluation.

A worker never decides: the driver's commands say which evaluation to run, in which cache context, and which
message each read uses.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from partitioner.graph.ir import Role
from partitioner.plan.program import Compute, Receive
from runtime.devices.memory import give_back, resident_bytes
from runtime.errors import ComponentFailed, NonFiniteValue, RankOutOfMemory, bytes_wanted
from runtime.transport.layout import pack, unpack
from runtime.transport.mailbox import Expected, Mailbox, MessageKey
from runtime.transport.weights import at_offset, read_stored
from runtime.worker.commands import DRIVER, Build, Evaluate, Join, Load, Setup
from runtime.worker.component import Component
from runtime.worker.microbatches import join
from runtime.worker.predictor import PREDICTORS, Hold, Predictor
from runtime.worker.recording import Computed, Recorder, Sent, Taken
from runtime.worker.segment import Segment

T = TypeVar("T")
PARAMETER_CONTEXT = -1  # the context of messages that carry parameters

Waiting = Generator[MessageKey, None, T]  # yields the key of each message that it must wait for


@dataclass
class _Context:
    """What a cache context keeps between evaluations."""

    prompt_inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    prompt_values: dict[str, torch.Tensor] = field(default_factory=dict)
    predictors: dict[str, Predictor] = field(default_factory=dict)
    unobserved: dict[str, deque[int]] = field(default_factory=dict)


class Worker:
    """One rank. Not thread-safe: one thread drives it; the mailbox may be filled by others."""

    def __init__(self, setup: Setup, mailbox: Mailbox) -> None:
        self.setup = setup
        self.mailbox = mailbox
        self.device = torch.device(setup.device)
        self.parameters: dict[str, torch.Tensor] = {}  # by path in the denoiser's state
        self.steps_done = 0
        self.send_seconds = 0.0  # in handing over what was computed
        self.step: int | None = None  # of the evaluation begun last
        self.busy = False  # within an evaluation or a load
        self.started_bytes = resident_bytes()  # of the process, before this rank has anything
        self.recorder = Recorder() if setup.record else None
        self._components: dict[int, Component] = {}
        self._static: dict[int, dict[str, torch.Tensor]] = {}  # table -> parameters and constants by value name
        self._contexts: dict[int, _Context] = {}
        self._unjoined: dict[MessageKey, dict[int, torch.Tensor]] = {}  # message of a whole batch -> its parts so far

    def build(self, command: Build) -> None:
        """Lower the component. Its parameters may come before or after."""
        spec = command.spec
        self._components[command.table] = Component(
            spec, self.device, compile=self.setup.compile, cuda_graphs=self.setup.cuda_graphs
        )
        senders: dict[str, tuple[int, ...]] = dict.fromkeys(spec.program.inputs, (DRIVER,))
        for step in spec.program.instructions:
            if isinstance(step, Receive):
                senders[step.value] = (self.setup.ranks_of[step.source],)
        senders |= dict.fromkeys(spec.program.results, self.setup.result_ranks)
        expected = [Expected(wire.value, wire.meta, senders.get(wire.value, ())) for wire in spec.wires]
        self.mailbox.register(command.table, expected)

    @property
    def is_settled(self) -> bool:
        """Whether evaluations to come only repeat what was done; CUDA graphs are captured first."""
        return all(component.is_settled for component in list(self._components.values()))

    def waiting_for(self) -> tuple[str, int] | None:
        """(value, rank that sends it) of the message that it waits for now, or None."""
        key = self.mailbox.waiting_for
        if key is None:
            return None
        expected = self.mailbox.expected(key)
        return expected.value, expected.senders[0]

    def load(self, command: Load) -> Waiting[None]:
        """Read and receive parameters; yields the key of each message that it must wait for."""
        self.mailbox.register(command.table, command.wires)
        self.busy = True
        count = len(command.parameters)
        for (parameter, file), offset in zip(command.stored, command.offsets[count:], strict=True):
            stored = read_stored(file, parameter.path, parameter.meta, offset)
            self.parameters[parameter.path] = stored.to(self.device)
        for index, parameter in enumerate(command.parameters):
            key = MessageKey(command.table, index, PARAMETER_CONTEXT, 0)
            received = yield from self._receive(key)
            self.parameters[parameter.path] = at_offset(received, command.offsets[index])
        give_back()  # what parameters were received in, or read through
        self.busy = False

    def evaluate(self, command: Evaluate) -> Waiting[dict[str, torch.Tensor]]:
        """Run one evaluation; its value is the results that this component makes, by value name.

        The caller turns gradients off.
        """
        self.step, self.busy = command.step, True
        component = self._components[command.table]
        context = self._contexts.setdefault(command.context, _Context())
        if command.start is not None:
            self._start_trajectory(context, command.context, command.start, command.ahead)
        values = yield from self._read_inputs(component, context, command)
        static = self._static_values(command.table, component)
        hoisted = component.hoisted
        if hoisted.prompt is not None and (command.fresh or not context.prompt_values):
            context.prompt_values = self._compute(hoisted.prompt, {**static, **context.prompt_inputs}, command)
        everything: dict[str, torch.Tensor] = {**static, **context.prompt_inputs, **context.prompt_values, **values}
        if hoisted.timestep is not None:
            everything |= self._compute(hoisted.timestep, everything, command)
        for index, step in enumerate(component.spec.program.instructions):
            if isinstance(step, Receive):
                everything[step.value] = yield from self._read(component, context, command, step)
            elif isinstance(step, Compute):
                everything |= self._compute(component.segments[index], everything, command)
                for value in step.drops:
                    if value not in static and value not in context.prompt_values:
                        everything.pop(value, None)
            else:
                ranks = tuple(self.setup.ranks_of[reader] for reader in step.readers)
                self._send(component, command, step.value, ranks, everything[step.value])
        results = {name: everything[name] for name in component.spec.program.results}
        if self.setup.rank != DRIVER:
            for name, tensor in results.items():  # another branch's: the driver joins them
                self._send(component, command, name, (DRIVER,), tensor)
        self.steps_done += 1
        self.busy = False
        return results

    def results_of(self, command: Evaluate) -> Waiting[dict[str, torch.Tensor]]:
        """The driver's worker only: the other branch's results of an evaluation."""
        component = self._components[command.table]
        results = {}
        for name in component.spec.program.results:
            key = MessageKey(command.table, component.wire_index[name], command.context, command.step)
            results[name] = yield from self._receive(key)
        return results

    def _start_trajectory(self, context: _Context, number: int, first_step: int, ahead: int | None) -> None:
        context.predictors.clear()
        context.unobserved.clear()
        context.prompt_values = {}
        self.mailbox.forget(number, first_step, ahead)

    def _receive(self, key: MessageKey) -> Waiting[torch.Tensor]:
        start = Recorder.now()
        while not self.mailbox.ready(key):
            yield key
        tensor = self.mailbox.take(key).to(self.device)  # between processes it travels through the host's memory
        if self.recorder is not None and key.context != PARAMETER_CONTEXT:
            name = self._components[key.table].spec.wires[key.wire].value
            self.recorder.marks.append(Taken(tuple(key), name, start, Recorder.now()))
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
            spec = component.spec
            values = {p.name: self.parameters[p.path] for p in spec.parameters}
            if component.hoisted.constant is not None:
                values |= component.hoisted.constant(values)
            self._static[table] = values
        return self._static[table]

    def _compute(
        self, segment: Segment, values: Mapping[str, torch.Tensor], command: Evaluate
    ) -> dict[str, torch.Tensor]:
        start = Recorder.now()
        try:
            made = segment(values)
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, MemoryError) as error:
            text = f"{type(error).__name__}: {error}"
            rank, component, step = self.setup.rank, self.setup.component, command.step
            node = segment.failing_node(error, values)
            if is_out_of_memory(error):
                raise RankOutOfMemory(
                    text, rank=rank, component=component, step=step, node=node, size_bytes=bytes_wanted(error)
                ) from error
            raise ComponentFailed(text, rank=rank, component=component, step=step, node=node) from error
        if self.recorder is not None:
            if self.device.type == "cuda":
                torch.cuda.current_stream(self.device).synchronize()  # so that the span is the work's, not its launch's
            name = f"step {command.step}: {segment.name}"
            self.recorder.marks.append(Computed(name, start, Recorder.now()))
        if self.setup.check_finite:
            self._check_finite(segment, values, made, command)
        return made

    def _check_finite(
        self,
        segment: Segment,
        values: Mapping[str, torch.Tensor],
        made: Mapping[str, torch.Tensor],
        command: Evaluate,
    ) -> None:
        for name, tensor in made.items():
            if _is_not_finite(tensor):
                raise NonFiniteValue(
                    f"%{name} holds NaN or Inf, first made",
                    rank=self.setup.rank,
                    component=self.setup.component,
                    step=command.step,
                    node=segment.first_node(values, _is_not_finite),
                )

    def _read(self, component: Component, context: _Context, command: Evaluate, step: Receive) -> Waiting[torch.Tensor]:
        """This step's message, or the predictor's estimate from the earlier ones."""
        wire = component.wire_index[step.value]
        wanted = command.reads[step.source]
        key = MessageKey(command.table, wire, command.context, wanted)
        if not command.observe:
            tensor = yield from self._receive(key)
            if command.join is not None:
                self._join(command.join, key, tensor)
            return tensor
        predictor = context.predictors.get(step.value)
        if predictor is None:
            floating = component.spec.wires[wire].meta.dtype.startswith(("float", "bfloat"))
            predictor = PREDICTORS[self.setup.predictor]() if floating else Hold()
            context.predictors[step.value] = predictor
        unobserved = context.unobserved.setdefault(step.value, deque())
        unobserved.extend(command.arrivals[step.source])
        latest = None
        while unobserved and unobserved[0] <= wanted:
            observed = unobserved.popleft()
            latest = yield from self._receive(key._replace(step=observed))
            predictor.observe(observed, latest)
        if wanted == command.step:
            assert latest is not None
            return latest
        return predictor.estimate(command.step)

    def _join(self, to: Join, key: MessageKey, tensor: torch.Tensor) -> None:
        """Take a part of a message; when all are there, so is the message."""
        whole = MessageKey(to.table, key.wire, to.context, key.step)
        parts = self._unjoined.setdefault(whole, {})
        parts[to.part] = tensor
        if len(parts) == to.parts:
            del self._unjoined[whole]
            meta = self.mailbox.expected(whole).meta
            tensor = join([parts[part] for part in range(to.parts)], meta)
            self.mailbox.deliver(whole, unpack(pack(tensor, meta), meta))  # as if it had been sent

    def _send(
        self, component: Component, command: Evaluate, value: str, ranks: Sequence[int], tensor: torch.Tensor
    ) -> None:
        start = time.perf_counter()
        key = MessageKey(command.table, component.wire_index[value], command.context, command.step)
        self.hand_over(ranks, key, value, tensor)
        self.send_seconds += time.perf_counter() - start

    def hand_over(self, ranks: Sequence[int], key: MessageKey, value: str, tensor: torch.Tensor) -> None:
        """Send a tensor, whose value's name is ``value``; recorded, if anything is."""
        if self.recorder is not None:
            size_bytes = tensor.numel() * tensor.element_size()
            self.recorder.marks.append(Sent(tuple(key), tuple(ranks), value, size_bytes, Recorder.now()))
        self.mailbox.send(ranks, key, tensor)


def together(works: Sequence[Waiting[T]], mailbox: Mailbox) -> Waiting[list[T]]:
    """Evaluations that need nothing of each other, as one: while an earlier one must wait, a later one goes on."""
    values: dict[int, T] = {}
    waiting: dict[int, MessageKey] = {}
    while len(values) < len(works):
        able = [i for i in range(len(works)) if i not in values and (i not in waiting or mailbox.ready(waiting[i]))]
        if not able:
            yield waiting[min(waiting)]
            continue
        first = able[0]
        waiting.pop(first, None)
        try:
            waiting[first] = next(works[first])
        except StopIteration as done:
            values[first] = done.value
    return [values[i] for i in range(len(works))]


def _is_not_finite(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch says that a device has no more memory."""
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or bytes_wanted(error) is not None
        or "not enough memory" in str(error).lower()
    )


def run_to_end(work: Waiting[T], mailbox: Mailbox, timeout_s: float | None = None) -> T:
    """Drive work in this thread, waiting where it must; returns its value.

    TimeoutError when a message is not there ``timeout_s`` after the start.
    """
    end = None if timeout_s is None else time.monotonic() + timeout_s
    with torch.no_grad():
        while True:
            try:
                key = next(work)
            except StopIteration as done:
                value: T = done.value
                return value
            mailbox.wait(key, None if end is None else max(0.0, end - time.monotonic()))
