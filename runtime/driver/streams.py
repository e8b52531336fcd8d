"""Streams: which trajectory a denoiser call belongs to, found out from the call and not declared.

A stream is the calls of one trajectory that carry the same conditions. A call continues a stream if

    its caller       is the stream's: the same pipeline and scheduler, and for a pipeline the same thread or task too
                     (a loop of the user's own may go on in another one)
    its cache context, size and conditions are the stream's
    its timestep     can come next, see runtime.driver.position
    its latent       can be what the sampler made of the stream's last one, see runtime.driver.continuity; on a GPU the
                     latent of a call that all else says is the next one is looked at when the call after it comes;
                     where all calls are exact it is not looked at

Of several such streams it continues the one that explains its latent clearly best; where none does, a trajectory starts
with exact calls. So trajectories that take turns in one thread are kept apart, and so are the two calls per step of
pipelines with guidance in two calls, with cache contexts or without.

Where the plan has branches for several streams of a step, a stream gets one group of them when it starts: the group
that the fewest of the step's streams have.

A stream ends with the last timestep of its scheduler, when its caller sets new timesteps, and when the caller is gone.
Of all others those that were used last are kept (``EngineOptions.kept_trajectories``). A call of one that was let go of
starts anew; while such calls may come, only what its latent shows clearly continues a stream (runtime.driver.let_go).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from weakref import WeakKeyDictionary

from partitioner.plan.plan import Plan
from runtime.driver.denoiser_call import DenoiserCall
from runtime.driver.generations import DENOISER, LATENT, LET_GO, NEW_PROMPT, Generation, Generations
from runtime.driver.let_go import LetGo
from runtime.driver.position import Position
from runtime.driver.readback import is_late
from runtime.driver.steps import Steps
from runtime.driver.stream import Stream
from runtime.driver.trajectory import WARM_UP, RunMode, Trajectory

SURE = 0.05  # a latent of which no more is unexplained is the stream's that explains it best
CLEAR = 0.8  # else that stream must leave so much less unexplained than the next
ABANDONED = 3  # a loop without a scheduler that makes no call while others make so many times those kept has ended


class Streams:
    """The streams of an engine.

    Args:
        run_mode: how trajectories are run.
        plan: says how many branches there are, and for how many streams of a step.
        numbers: the numbers that trajectories' contexts get, 1 + microbatches apart.
        warned: what the user has been warned of.
        most: how many streams are kept.
        microbatches: at most so many share a trajectory's messages.
        denoisers: the generations of the engine's denoisers so far, which this one's join.
    """

    def __init__(
        self,
        run_mode: RunMode,
        plan: Plan,
        numbers: Iterator[int],
        warned: set[str],
        *,
        most: int,
        microbatches: int,
        denoisers: list[Generations],
    ) -> None:
        self._run_mode = run_mode
        self._plan = plan
        self._numbers_each = 1 + microbatches
        self._most = most
        self._gone = LetGo()
        self._open: list[Stream] = []  # the one that was used last comes last
        self._ended: list[Trajectory] = []  # that ranks have not been told to forget
        self._calls = 0  # so far
        self._free: list[tuple[int, int]] = []  # (number, the step to go on from) of contexts that were forgotten
        self._numbers = numbers
        self._warned = warned
        self._steps: WeakKeyDictionary[Generation, Steps] = WeakKeyDictionary()
        self._discarded: list[Generation] = []  # of streams that were, until others start in their place
        self.generations = Generations(warned, denoisers)

    def of(self, call: DenoiserCall, before_start: Callable[[], object]) -> Stream:
        """The stream that a call belongs to, which has taken the call's inputs; a new one starts after before_start."""
        self._end([stream for stream in self._open if stream.is_over])
        stream = self._continued(call)
        if stream is None:
            before_start()
            stream = self._started(call)
        self._open.append(stream)
        return stream

    def done(self, stream: Stream, call: DenoiserCall, output: object, reason: str | None) -> None:
        """End a call.

        Args:
            stream: that it belongs to.
            call: what was called.
            output: the denoiser's first result.
            reason: why it was exact; None where it was not.
        """
        if stream not in self._open:  # it was foreseen
            self._open.append(stream)
        self._calls += 1
        stream.used_at = self._calls
        generation = stream.generation
        first = stream.group * self._plan.branches_per_stream
        generation.count(call.timestep, reason, range(first, first + call.branches), call.latent.shape[0])
        stream.done(call, output)
        if stream.has_ended:
            self._end([stream])
            if generation.open == 0:
                self.generations.end(generation)

    def steps_of(self, generation: Generation) -> Steps:
        """The steps of a generation."""
        return self._steps.setdefault(generation, Steps())

    def is_open(self, stream: Stream) -> bool:
        """Whether a stream may go on with another call."""
        return stream in self._open

    def foresee(self, stream: Stream, call: DenoiserCall) -> None:
        """Have an open stream take a call that was not made yet; until ``done`` or ``give_up`` no call continues it."""
        self._open.remove(stream)
        stream.take(call, None if is_late(call.latent) else stream.unexplained(call))

    def give_up(self, stream: Stream) -> None:
        """End a stream whose foreseen call was not made."""
        stream.has_ended = True
        self._ended.append(stream.trajectory)

    def discard(self, stream: Stream, with_it: Collection[Stream]) -> None:
        """End a stream whose present call is made again, by another one, as if it had not taken the call.

        with_it: those that have ended because their calls were foreseen with that one.
        """
        if stream in self._open:
            self._end([stream])
        stream.take_back()
        self.steps_of(stream.generation).take_back(stream)
        self._discarded = [stream.generation, *(other.generation for other in with_it)]

    def let_go(self, tables: Collection[int]) -> None:
        """Let go of the streams whose calls are of some graphs: ranks will not have these any more."""
        self._let_go([stream for stream in self._open if not set(tables).isdisjoint(stream.graphs.tables)])

    def end_all(self) -> None:
        """Have every trajectory end: no call to come can go on with what the ranks have kept."""
        self._end(list(self._open))
        self.generations.cut()

    def ended(self) -> list[tuple[range, int]]:
        """The trajectories that have ended since this was last asked, for ranks to forget: their numbers are free.

        Returns:
            Of each the numbers of its contexts, its micro-batches' included, and the step after its last one.
        """
        ended, self._ended = self._ended, []
        self._free += [(trajectory.number, trajectory.next_base) for trajectory in ended]
        return [(range(each.number, each.number + self._numbers_each), each.next_base) for each in ended]

    def _continued(self, call: DenoiserCall) -> Stream | None:
        """The open stream that a call continues, which has taken it and is no longer among the open ones."""
        able = [
            stream
            for stream in self._open
            if stream.context_name == call.context_name
            and stream.caller.may_be(call.caller)
            and stream.difference(call) is None
        ]
        strays = [stream for stream in able if stream.was_foreign]
        self._end(strays)
        able = [stream for stream in able if stream not in strays]
        alone = not self._gone.may_have(call)
        if len(able) == 1 and alone and is_late(call.latent) and able[0].is_next(call) and able[0].is_sure_of(call):
            self._open.remove(able[0])
            able[0].take(call, None)
            return able[0]
        found = [(stream.unexplained(call, roughly=len(able) == 1 and alone), stream) for stream in able]
        found = [(share, stream) for share, stream in found if stream.allows(call, share, alone=alone)]
        found.sort(key=lambda item: item[0])
        found = [(share, s) for share, s in found if s.is_next(call)] or found
        if not found:
            return None
        share, best = found[0]
        if len(found) > 1 and share > SURE and share >= CLEAR * found[1][0]:
            own = [(share, stream) for share, stream in found if stream.is_of(call.caller)]
            if len(own) != 1:
                return None
            share, best = own[0]
        self._open.remove(best)
        best.take(call, share)
        return best

    def _started(self, call: DenoiserCall) -> Stream:
        """A new stream, in place of the one that was not used for longest, if there are too many."""
        own = [stream for stream in self._open if stream.caller.may_be(call.caller)]
        generation, cause = self._generation(call, own)
        self._let_go(self._open[: max(0, len(self._open) - self._most + 1)])
        if self._free:
            number, base = self._free.pop()
        else:
            number, base = next(self._numbers), 0
        base = max(base, self._calls)
        trajectory = Trajectory(number, self._run_mode, self._warned, base, cause, generation.beside, generation.spent)
        stream = Stream(call, trajectory, generation, self._group(generation))
        generation.open += 1
        return stream

    def _group(self, generation: Generation) -> int:
        """The group of branches for one more stream: the one that the fewest of the step's streams have."""
        taken = Counter(stream.group for stream in self.steps_of(generation).streams if not stream.has_ended)
        return min(range(self._plan.streams), key=lambda group: (taken[group], group))

    def _generation(self, call: DenoiserCall, own: list[Stream]) -> tuple[Generation, str]:
        """The generation that a new stream is part of, and why it starts. own: its caller's open streams."""
        known = self.generations.of(call.caller, call.timesteps)
        if known is not None and not known.is_over(call.timestep):
            same = [stream for stream in own if stream.context_name == call.context_name]
            if known.starts(call.timestep):
                return known, WARM_UP
            if known in self._discarded:
                self._discarded.remove(known)
                return known, DENOISER
            if self._gone.take_back(call):
                return known, LET_GO
            if any(stream.is_of_other_denoiser(call) for stream in own):
                return known, DENOISER
            if same:
                return known, same[-1].difference(call) or LATENT
            return known, DENOISER if known.is_cut else NEW_PROMPT
        scheduler = call.caller.scheduler() if call.caller.scheduler is not None else None
        generation = Generation(
            call.caller,
            call.timesteps,
            call.timestep,
            call.timestep is not None and Position(call.timestep, scheduler).is_known,
            self._run_mode.warmup,
            self._run_mode.components,
            self._plan,
            spent=self.generations.spent(call.caller, call.timesteps, call.timestep),
        )
        self.generations.begin(generation)
        self._end([stream for stream in own if stream.timesteps is not call.timesteps])  # of a run before
        return generation, WARM_UP

    def _let_go(self, streams: list[Stream]) -> None:
        """End streams of which more calls may come."""
        for stream in streams:
            if stream.is_known or self._calls - stream.used_at <= ABANDONED * self._most:
                self._gone.add(stream)
        self._end(streams)

    def _end(self, streams: list[Stream]) -> None:
        for stream in streams:
            self._open.remove(stream)
            stream.has_ended = True
            self._ended.append(stream.trajectory)
