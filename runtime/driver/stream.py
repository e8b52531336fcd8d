"""Stream: the calls of one trajectory that carry the same conditions."""

from __future__ import annotations

from dataclasses import replace

import torch

from runtime.driver.call_arguments import Tensors, graph_signature
from runtime.driver.callers import Caller
from runtime.driver.continuity import Moves
from runtime.driver.denoiser_call import DenoiserCall, timesteps_of
from runtime.driver.generations import NEW_PROMPT, NEW_SIZE, PACE, TIMESTEP, Generation
from runtime.driver.position import Position
from runtime.driver.prompt_inputs import PromptInputs
from runtime.driver.spent import Spent
from runtime.driver.trajectory import Trajectory

EXPLAINED = 0.3  # no sampler without noise leaves more of a latent unexplained (runtime.driver.continuity)


class Stream:
    """The calls of one trajectory that carry the same conditions.

    Attributes:
        trajectory: what is kept of them.
        caller: who made the last of them.
        context_name: the cache context of all of them.
        generation: that they are part of.
        timesteps: the scheduler's at the last of them.
        graphs: of all of them.
        group: of the groups of branches that the plan has for streams, the one that computes its calls.
        has_ended: whether no call can come any more.
        used_at: which of the engine's calls the last of them was.
    """

    def __init__(self, call: DenoiserCall, trajectory: Trajectory, generation: Generation, group: int) -> None:
        self.trajectory = trajectory
        self.generation = generation
        self.group = group
        self.caller = call.caller
        self.context_name = call.context_name
        self.has_ended = False
        self.used_at = 0
        self.graphs = call.graphs
        self.timesteps = call.timesteps
        self._prompts = PromptInputs(call.graph, call.tensors)
        scheduler = call.caller.scheduler() if call.caller.scheduler is not None else None
        self._position = Position(call.timestep, scheduler) if call.timestep is not None else None
        self._moves = Moves()
        self._share: float | None = None  # of the present call's latent, that is unexplained
        self._spent: list[tuple[Spent, Spent]] = []  # by the generation, and what it was before the present call
        self._goes_round = False  # whether several threads or tasks have made its calls
        trajectory.start(call.graph, call.tensors, call.timestep, scheduler)

    def difference(self, call: DenoiserCall) -> str | None:
        """Why a call of its caller, or of another thread or task, is not its next one; None where it may be."""
        if call.graphs.tables != self.graphs.tables:
            return NEW_SIZE
        if self.carries_other_prompts(call.tensors):
            return NEW_PROMPT
        if call.timestep is None or self._position is None or not self.trajectory.expects(call.timestep):
            return TIMESTEP
        skips = not self.is_next(call)
        if not self._position.follows(call.timestep) or (skips and not self.is_of(call.caller)):
            return TIMESTEP
        return PACE if self.trajectory.reads_past and not self._position.keeps_pace(call.timestep) else None

    def is_of_other_denoiser(self, call: DenoiserCall) -> bool:
        """Whether a call is as the stream's, and only the denoiser is another by now, or something else by turns."""
        own = self.graphs.graph
        return own is not call.graph and graph_signature(own) == graph_signature(call.graph)

    def carries_other_prompts(self, tensors: Tensors) -> bool:
        """Whether a call of the same graph carries conditions other than the stream's. tensors: its inputs by path."""
        return bool(self._prompts.changed(tensors))

    def is_next(self, call: DenoiserCall) -> bool:
        """Whether a call's timestep comes right after the last one: it is not the same again, and none was left out."""
        return self._position is not None and call.timestep is not None and self._position.is_next(call.timestep)

    def unexplained(self, call: DenoiserCall, *, roughly: bool = False) -> float:
        """The share of a call's latent that its sampler cannot have made; roughly: see Moves. 0 where all are exact."""
        return self._moves.unexplained(call.latent, roughly=roughly)

    @property
    def was_foreign(self) -> bool:
        """Whether the latent of its last call was none that its sampler can have made, and that was not looked at."""
        return self._moves.was_foreign

    def allows(self, call: DenoiserCall, unexplained: float, *, alone: bool) -> bool:
        """Whether a call of whose latent such a share is unexplained may be its next one.

        Any share may be the first: some samplers begin with nearly nothing but noise. Then the timestep must tell.

        alone: whether no stream was let go of that the call may belong to; otherwise its latent must tell clearly.
        """
        if not alone:
            return unexplained <= EXPLAINED
        first = self._moves.worst is None and self.is_next(call)
        return (first and self.is_sure_of(call)) or not self._moves.is_foreign(unexplained)

    def is_sure_of(self, call: DenoiserCall) -> bool:
        """Whether a call that may be the next one need not show it by its latent: no other run can have made it."""
        return self.is_of(call.caller) and call.timesteps is self.timesteps

    def is_of(self, caller: Caller) -> bool:
        """Whether this caller has made all its calls so far."""
        return not self._goes_round and self.caller.is_same(caller)

    @property
    def is_known(self) -> bool:
        """Whether its timesteps are the scheduler's."""
        return self._position is not None and self._position.is_known

    @property
    def is_over(self) -> bool:
        """Whether no call can come: its caller is gone, or has set other timesteps."""
        return has_ended(self.caller, self.timesteps, is_known=self.is_known)

    def take(self, call: DenoiserCall, unexplained: float | None) -> None:
        """Take its next call. unexplained: of its latent; None: that is looked at when the next call comes."""
        if unexplained is None:
            self._moves.look_later(call.latent)
        self._goes_round |= not self.caller.is_same(call.caller)
        self.caller = call.caller
        self.timesteps = self.generation.timesteps = call.timesteps
        self._share = unexplained
        self._spent = [(spent, replace(spent)) for spent in self.generation.spent.values()]
        if self._position is not None and call.timestep is not None:
            self._position.move(call.timestep)
        self.trajectory.take(call.tensors)

    def take_back(self) -> None:
        """Have the generation not count what the present call passes on; the stream has ended with it."""
        for spent, before in self._spent:
            spent.take_back(before)

    def done(self, call: DenoiserCall, output: object) -> None:
        """Take what the denoiser gave for the present call."""
        if not self.trajectory.is_exact:  # else nothing of one call is read at another, and latents may be anybody's
            self._moves.add(call.latent, output, self._share)
        self.has_ended = self._position is not None and self._position.is_last
        self.generation.open -= self.has_ended


def has_ended(caller: Caller, timesteps: torch.Tensor | None, *, is_known: bool) -> bool:
    """Whether a caller can make no call any more of the run that it had these timesteps for.

    A pipeline may put the scheduler's state back at each step, as those do that make a panorama of several views: that
    is a copy of the same timesteps. Where calls have other timesteps, a copy is a new run.

    Args:
        caller: who has made the run's calls.
        timesteps: its scheduler's at the last of them.
        is_known: whether its calls have the scheduler's timesteps.
    """
    now = timesteps_of(caller)
    return caller.is_gone or not (now is timesteps or (is_known and _are_same(now, timesteps)))


def _are_same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Whether timesteps are the same, or a copy; values are looked at only where it is another tensor."""
    if one is None or other is None:
        return False
    return one.shape == other.shape and one.device == other.device and torch.equal(one, other)
