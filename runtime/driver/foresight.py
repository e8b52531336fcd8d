"""Foresight: begins the calls of a step's other streams when the first of its calls is made, on their own branches.

A pipeline with guidance in two calls makes them one after the other, and waits for the first before it makes the
second. But from the second step on it is known what that will be (runtime.driver.steps). So it is begun with the first,
at the same time, and when the pipeline makes it, its arguments are compared bit for bit. If they are as foreseen, the
result is there already. If not, it is computed anew; and its stream ends, since ranks have gone on with what was none
of its calls.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from partitioner.graph.nodes import Role
from runtime.driver.call_arguments import CallForm, Tensors, layout_of
from runtime.driver.callers import Caller
from runtime.driver.denoiser_call import DenoiserCall
from runtime.driver.dispatch import RunningCall
from runtime.driver.generations import Generation
from runtime.driver.readback import is_late
from runtime.driver.steps import SameBits, Steps, stepwise_inputs, versions_of
from runtime.driver.stream import Stream
from runtime.driver.streams import Streams
from runtime.driver.traced_graphs import CallGraphs
from runtime.driver.warn_once import warn_once
from runtime.stats import CallTimes

MOST_MISSES = 2  # steps in a row whose calls were not as foreseen; then no more are foreseen in the generation


@dataclass(frozen=True, eq=False)
class BegunCall:
    """A call that ranks have begun.

    Attributes:
        call: what is called.
        stream: that it belongs to.
        running: what the ranks were told.
        mode: how it is run: "exact", "async" or "lookahead".
        reason: why it is exact; None where it is not.
    """

    call: DenoiserCall
    stream: Stream
    running: RunningCall
    mode: str
    reason: str | None


BeginCall = Callable[[DenoiserCall, Stream], BegunCall]


class Foresight:
    """The foreseen calls of one denoiser.

    Args:
        streams: of the denoiser.
        times: where calls are counted.
        warned: what the user has been warned of.
    """

    def __init__(self, streams: Streams, times: CallTimes, warned: set[str]) -> None:
        self._streams = streams
        self._times = times
        self._warned = warned
        self._foreseen: dict[BegunCall, dict[str, int]] = {}  # with the versions of their inputs, by path
        self._doubts: list[SameBits] = []  # what was taken to be the same, and is looked at later

    @property
    def begun(self) -> Collection[BegunCall]:
        """Those that were begun and are not made yet."""
        return self._foreseen.keys()

    @property
    def was_wrong(self) -> bool:
        """Whether a call since this was last asked had another timestep than it was taken to have; waits for a GPU."""
        doubts, self._doubts = self._doubts, []
        return not all(doubts)

    def made(
        self,
        caller: Caller,
        context_name: str,
        tensors: Tensors,
        form: CallForm,
        number: float | None,
        is_present: Callable[[CallGraphs], bool],
    ) -> BegunCall | None:
        """The foreseen call that a caller now makes; None where this is another.

        Args:
            caller: who makes it.
            context_name: of its cache context.
            tensors: its inputs by path.
            form: what else its arguments are.
            number: its timestep, where that is known.
            is_present: says whether graphs are those of the denoiser as it is now: by turns it may be something else.
        """
        for begun in list(self._foreseen):
            if begun.stream.is_over:
                self._give_up(begun)
                continue
            if not is_present(begun.call.graphs):
                continue
            given = DenoiserCall(caller, context_name, begun.call.graphs, tensors, form, number)
            if not _is_of_stream(begun, given):
                continue
            steps = self._streams.steps_of(begun.stream.generation)
            if self._is_as_foreseen(begun, given):
                del self._foreseen[begun]
                self._times.foreseen += 1
                begun.stream.generation.foreseen += 1
                steps.hit = True
                steps.take(begun.call, begun.stream)
                return begun
            steps.missed = True
            self._give_up(begun)
        return None

    def begin_others(self, call: DenoiserCall, stream: Stream, begin: BeginCall) -> list[BegunCall]:
        """Begin what else is to be called at the step that a call may begin.

        Args:
            call: that the pipeline makes; it was not foreseen.
            stream: that it belongs to.
            begin: has ranks begin a call of a stream.
        """
        steps = self._streams.steps_of(stream.generation)
        if steps.begins(call, stream):
            self._end_step(steps, stream.generation)
        steps.take(call, stream)
        if not steps.has_begun:
            self._count_unforeseen(stream, 1)
            return []
        begun, steps.why = [], None
        for other in steps.expected(stream):
            if steps.gave_up or other.group == stream.group or not self._streams.is_open(other):
                continue
            foreseen = steps.next_call(other, stream)
            if isinstance(foreseen, str):
                steps.why = foreseen
            elif other.is_next(foreseen) and other.is_of(call.caller) and other.difference(foreseen) is None:
                self._streams.foresee(other, foreseen)
                begun.append(begin(foreseen, other))
                self._foreseen[begun[-1]] = versions_of(foreseen.tensors)
        return begun

    def give_up_all(self) -> None:
        """Forget what was foreseen: no trajectory goes on."""
        for begun in list(self._foreseen):
            self._give_up(begun)

    def discard(self, begun: BegunCall) -> None:
        """End the stream of a call that has run and is made again, and forget what was foreseen with it."""
        with_it = [other.stream for other in self._foreseen]
        self.give_up_all()
        begun.stream.trajectory.done(begun.running.runs)
        self._count_unforeseen(begun.stream, -1)
        self._streams.discard(begun.stream, with_it)
        self._times.discarded += 1

    def _count_unforeseen(self, stream: Stream, count: int) -> None:
        """Count the last call of a stream, if it was none that a step begins with, and was not foreseen either."""
        steps = self._streams.steps_of(stream.generation)
        if steps.why is not None and not steps.has_begun and not steps.gave_up:
            stream.generation.unforeseen[steps.why] += count

    def _end_step(self, steps: Steps, generation: Generation) -> None:
        """A step has ended: what was foreseen in it and not made will not be."""
        left = [begun for begun in self._foreseen if begun.stream.generation is generation]
        for begun in left:
            self._give_up(begun)
        if left or steps.missed:
            steps.misses += 1
        elif steps.hit:
            steps.misses = 0
        steps.missed = steps.hit = False
        if steps.misses >= MOST_MISSES and not steps.gave_up:
            steps.gave_up = True
            generation.unforeseen.clear()  # it is said here
            warn_once(
                self._warned,
                f"{MOST_MISSES} steps in a row made other denoiser calls than were foreseen at the first of them: from "
                "here on this generation's calls are computed when they are made, one after the other. engine.stats "
                "counts what was computed in vain as wasted_calls.",
            )

    def _is_as_foreseen(self, begun: BegunCall, given: DenoiserCall) -> bool:
        """Whether what changes from step to step is as foreseen, too."""
        now = versions_of(begun.call.tensors)
        for path, role in stepwise_inputs(given).items():
            if now.get(path) != self._foreseen[begun].get(path):
                return False  # it was written to: nobody knows what it was
            same = SameBits(given.tensors[path], begun.call.tensors[path])
            if role is Role.TIMESTEP and is_late(given.tensors[path]) and given.number == begun.call.number:
                self._doubts.append(same)
            elif not same:
                return False
        return True

    def _give_up(self, begun: BegunCall) -> None:
        del self._foreseen[begun]
        self._times.wasted += 1
        begun.stream.trajectory.done(begun.running.runs)
        self._streams.give_up(begun.stream)


def _is_of_stream(begun: BegunCall, given: DenoiserCall) -> bool:
    """Whether a call is one of the foreseen call's stream: in all but what changes from step to step."""
    known = begun.call
    if not (known.caller.is_same(given.caller) and known.context_name == given.context_name):
        return False
    if (known.form.literals, known.form.containers) != (given.form.literals, given.form.containers):
        return False
    layouts = [{path: layout_of(tensor) for path, tensor in call.tensors.items()} for call in (known, given)]
    return layouts[0] == layouts[1] and not begun.stream.carries_other_prompts(given.tensors)
