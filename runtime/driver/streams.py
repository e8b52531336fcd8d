"""Streams: which trajectory a denoiser call belongs to, found out from the call and not declared.

A stream is the calls of one trajectory that carry the same conditions. A call continues a stream if

    its caller       is the stream's: the same pipeline and scheduler, and for a pipeline the same thread or task too
                     (a loop of the user's own may go on in another one)
    its cache context, size and conditions are the stream's
    its timestep     can come next, see runtime.driver.position
    its latent       can be what the sampler made of the stream's last one, see runtime.driver.continuity; on a GPU the
                     latent of a call that all else says is the next one is looked at when the call after it comes

Of several such streams it continues the one that explains its latent clearly best; where none does, a trajectory starts
with exact calls. So trajectories that take turns in one thread are kept apart, and so are the two calls per step of
pipelines with guidance in two calls, with cache contexts or without.

A stream ends with the last timestep of its scheduler, when its caller sets new timesteps, and when the caller is gone.
Of one caller the OPEN streams that were used last are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from partitioner.graph.ir import Role, TracedGraph
from runtime.driver.call_arguments import Tensors
from runtime.driver.callers import Caller
from runtime.driver.continuity import Moves
from runtime.driver.generations import DENOISER, LATENT, NEW_PROMPT, NEW_SIZE, TIMESTEP, Generation, Generations
from runtime.driver.position import Position
from runtime.driver.prompt_inputs import PromptInputs
from runtime.driver.readback import is_late
from runtime.driver.trajectory import WARM_UP, RunMode, Trajectory

OPEN = 16  # streams of one caller
SURE = 0.05  # a latent of which no more is unexplained is the stream's that explains it best
CLEAR = 0.8  # else that stream must leave so much less unexplained than the next


@dataclass(frozen=True)
class DenoiserCall:
    """A denoiser call, as far as it tells whose it is.

    Attributes:
        caller: who makes it.
        context_name: of its cache context.
        graph: of the call.
        branches: how many branches its rows are split over.
        tensors: its inputs by path.
        number: its timestep, where that is known.
    """

    caller: Caller
    context_name: str
    graph: TracedGraph
    branches: int
    tensors: Tensors
    number: float | None = None

    @cached_property
    def timestep(self) -> float | None:
        """Its timestep; None where it has none."""
        path = self._first(Role.TIMESTEP)
        if self.number is not None and path is not None:
            return self.number
        return float(self.tensors[path].flatten()[0]) if path is not None else None

    @cached_property
    def latent(self) -> torch.Tensor:
        """The latent, as the pipeline passes it."""
        path = self._first(Role.LATENT)
        assert path is not None, "every plan has a latent"
        return self.tensors[path]

    @cached_property
    def timesteps(self) -> torch.Tensor | None:
        """Its scheduler's."""
        return timesteps_of(self.caller)

    def _first(self, role: Role) -> str | None:
        return next((item.name for item in self.graph.inputs if item.role is role), None)


def timesteps_of(caller: Caller) -> torch.Tensor | None:
    """Its scheduler's timesteps: a tensor that every run of a pipeline makes anew."""
    found = getattr(caller.scheduler(), "timesteps", None) if caller.scheduler is not None else None
    return found if isinstance(found, torch.Tensor) else None


class Stream:
    """The calls of one trajectory that carry the same conditions.

    Attributes:
        trajectory: what is kept of them.
        caller: who made the last of them.
        generation: that they are part of.
        has_ended: whether no call can come any more.
    """

    def __init__(self, call: DenoiserCall, trajectory: Trajectory, generation: Generation) -> None:
        self.trajectory = trajectory
        self.generation = generation
        self.caller = call.caller
        self.context_name = call.context_name
        self.has_ended = False
        self._graph, self._branches = call.graph, call.branches
        self._timesteps = call.timesteps
        self._prompts = PromptInputs(call.graph, call.tensors)
        scheduler = call.caller.scheduler() if call.caller.scheduler is not None else None
        self._position = Position(call.timestep, scheduler) if call.timestep is not None else None
        self._moves = Moves()
        self._share: float | None = None  # of the present call's latent, that is unexplained
        self._goes_round = False  # whether several threads or tasks have made its calls
        trajectory.start(call.graph, call.tensors, call.timestep, scheduler)

    def difference(self, call: DenoiserCall) -> str | None:
        """Why a call of its caller, or of another thread or task, is not its next one; None where it may be."""
        if call.graph is not self._graph or call.branches != self._branches:
            return NEW_SIZE
        if self._prompts.changed(call.tensors):
            return NEW_PROMPT
        if call.timestep is None or self._position is None or not self.trajectory.expects(call.timestep):
            return TIMESTEP
        skips = not self.is_next(call)
        return (
            TIMESTEP if not self._position.follows(call.timestep) or (skips and not self.is_of(call.caller)) else None
        )

    def is_next(self, call: DenoiserCall) -> bool:
        """Whether a call's timestep comes right after the last one: it is not the same again, and none was left out."""
        return self._position is not None and call.timestep is not None and self._position.is_next(call.timestep)

    def unexplained(self, call: DenoiserCall) -> float:
        """The share of a call's latent that its sampler cannot have made."""
        return self._moves.unexplained(call.latent)

    @property
    def was_foreign(self) -> bool:
        """Whether the latent of its last call was none that its sampler can have made, and that was not looked at."""
        return self._moves.was_foreign

    def allows(self, call: DenoiserCall, unexplained: float) -> bool:
        """Whether a call of whose latent such a share is unexplained may be its next one.

        Any share may be the first: some samplers begin with nearly nothing but noise. Then the timestep must tell.
        """
        first = (
            self._moves.worst is None and self._position is not None and self._position.is_next(call.timestep or 0.0)
        )
        return (first and self.is_of(call.caller)) or not self._moves.is_foreign(unexplained)

    def is_of(self, caller: Caller) -> bool:
        """Whether this caller has made all its calls so far."""
        return not self._goes_round and self.caller.is_same(caller)

    @property
    def is_over(self) -> bool:
        """Whether no call can come: its caller is gone, or has begun anew."""
        return self.caller.is_gone or timesteps_of(self.caller) is not self._timesteps

    def take(self, call: DenoiserCall, unexplained: float | None) -> None:
        """Take its next call. unexplained: of its latent; None: that is looked at when the next call comes."""
        if unexplained is None:
            self._moves.look_later(call.latent)
        self._goes_round |= not self.caller.is_same(call.caller)
        self.caller = call.caller
        self._share = unexplained
        if self._position is not None and call.timestep is not None:
            self._position.move(call.timestep)
        self.trajectory.take(call.graph, call.tensors)

    def done(self, call: DenoiserCall, output: object) -> None:
        """Take what the denoiser gave for the present call."""
        self._moves.add(call.latent, output, self._share)
        self.has_ended = self._position is not None and self._position.is_last
        self.generation.open -= self.has_ended


class Streams:
    """The streams of an engine.

    Args:
        run_mode: how trajectories are run.
        branches: of the plan.
        microbatches: at most so many share a trajectory's messages.
        numbers: the numbers that trajectories' contexts get, 1 + microbatches apart.
        warned: what the user has been warned of.
    """

    def __init__(
        self, run_mode: RunMode, branches: int, microbatches: int, numbers: Iterator[int], warned: set[str]
    ) -> None:
        self._run_mode = run_mode
        self._branches = branches
        self._numbers_each = 1 + microbatches
        self._open: list[Stream] = []  # the one that was used last comes last
        self._ended: list[Trajectory] = []  # that ranks have not been told to forget
        self._calls = 0  # so far
        self._free: list[tuple[int, int]] = []  # (number, the step to go on from) of contexts that were forgotten
        self._numbers = numbers
        self._warned = warned
        self.generations = Generations(warned)

    def of(self, call: DenoiserCall) -> Stream:
        """The stream that a call belongs to, which has taken the call's inputs."""
        self._end([stream for stream in self._open if stream.is_over])
        stream = self._continued(call)
        if stream is None:
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
        self._calls += 1
        generation = stream.generation
        generation.count(call.timestep, reason, call.branches, call.latent.shape[0])
        stream.done(call, output)
        if stream.has_ended:
            self._end([stream])
            if generation.open == 0:
                self.generations.end(generation)

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
        if len(able) == 1 and is_late(call.latent) and able[0].is_next(call) and able[0].is_of(call.caller):
            self._open.remove(able[0])
            able[0].take(call, None)
            return able[0]
        found = [(stream.unexplained(call), stream) for stream in able]
        found = sorted([(share, s) for share, s in found if s.allows(call, share)], key=lambda item: item[0])
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
        """A new stream, in place of the one of its caller that was not used for longest, if that has too many."""
        own = [stream for stream in self._open if stream.caller.may_be(call.caller)]
        generation, cause = self._generation(call, own)
        self._end(own[: max(0, len(own) - OPEN + 1)])
        if self._free:
            number, base = self._free.pop()
        else:
            number, base = next(self._numbers), 0
        trajectory = Trajectory(number, self._run_mode, self._warned, max(base, self._calls), cause)
        stream = Stream(call, trajectory, generation)
        generation.open += 1
        return stream

    def _generation(self, call: DenoiserCall, own: list[Stream]) -> tuple[Generation, str]:
        """The generation that a new stream is part of, and why it starts. own: its caller's open streams."""
        known = self.generations.of(call.caller, call.timesteps)
        if known is not None and not known.is_over(call.timestep):
            same = [stream for stream in own if stream.context_name == call.context_name]
            if known.starts(call.timestep):
                return known, WARM_UP
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
            self._branches,
        )
        self.generations.begin(generation)
        return generation, WARM_UP

    def _end(self, streams: list[Stream]) -> None:
        for stream in streams:
            self._open.remove(stream)
            self._ended.append(stream.trajectory)
