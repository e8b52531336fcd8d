"""Generations: how many calls of each generation were lagged, why the others were not, and what to say about it.

A generation is what a pipeline does at one request: a trajectory, or several streams that begin at the same timestep.
Its calls could have been lagged but for the warm-up of each stream and the sampler's last calls. Where fewer than half
of them were, or a rank did nothing, a warning says so once, with the reason and the way out.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field

from partitioner.plan.plan import Plan
from runtime.driver.callers import Caller
from runtime.driver.outputs_beside import OutputsBeside, outputs_by_latent
from runtime.driver.spent import Spent, spent_by_latent
from runtime.driver.trajectory import ASTRAY, GUARDED, LAST_CALLS, MODE, ONE_COMPONENT, UNFORESEEN, WARM_UP
from runtime.driver.warn_once import warn_once

NEW_SIZE, NEW_PROMPT = "another size", "another prompt"
TIMESTEP, LATENT, DENOISER = "timestep out of order", "latent of no step's making", "changed denoiser"
PACE = "steps left out"
LET_GO = "let go of"
# why a call is exact that is meant to be, or of which the user has been told
MEANT = {WARM_UP, LAST_CALLS, MODE, ONE_COMPONENT, UNFORESEEN}

KEPT = 16  # generations of one thread that no pipeline makes
MOST = 256  # generations of all callers

_WHY = {  # why trajectories began anew in mid-generation, and the way out
    NEW_SIZE: (
        "their sizes, numbers of rows or arguments were others than those of the calls before",
        "Keep them as they are within a generation.",
    ),
    NEW_PROMPT: (
        "their conditions were others than those of the calls before",
        "Where a pipeline gives new ones at every step there is nothing to reuse: run it without the engine, or by a "
        "plan of branches alone (--branches 2).",
    ),
    TIMESTEP: (
        "their timesteps do not come next by the scheduler, or there is none",
        "In a loop of your own give Engine the loop's scheduler.",
    ),
    PACE: (
        "more steps or fewer lay between them than between the calls before, whose values are of no use then",
        "Have guidance, hooks and layers to skip be there at all steps of a generation, or at all from one on.",
    ),
    LATENT: (
        "no step of the sampler can have made their latents of those of the calls before",
        "A callback that puts other latents in costs a warm-up each time.",
    ),
    LET_GO: (
        "more trajectories or sizes take turns than the engine keeps",
        "Keep more of them with kept_trajectories= or kept_graphs=.",
    ),
    DENOISER: (
        "the denoiser had been changed",
        "Change adapters, weights and hooks between generations, not within one.",
    ),
    ASTRAY: (
        "look-ahead had predicted their latents badly",
        "More steps or a lower guidance scale make predictions better; quality= (--quality) says how near the picture "
        "must come to the sequential one.",
    ),
    GUARDED: (
        "look-ahead would have passed on more of an error than the quality allows",
        "More steps or a lower guidance scale make predictions better; quality= (--quality) says how near the picture "
        "must come to the sequential one; branches (--branches 2) compute guidance exactly at the same time.",
    ),
}


@dataclass(eq=False)
class Generation:
    """The calls of one generation so far.

    Attributes:
        caller: who makes them.
        timesteps: the scheduler's; another tensor is another generation.
        first: the timestep of the first call; None where calls have none.
        is_known: whether it is one of the scheduler's.
        warmup: how many calls each stream begins with that are exact.
        components: of a branch.
        plan: of the denoiser.
        calls: so far, by why they were exact; "" for those that were not.
        used: the branches that have computed something.
        rows: of the first latent.
        foreseen: how many calls were begun with their step's first one, on branches of their own.
        unforeseen: how many calls of such branches were not, by why.
        open: how many streams have begun and have not come to the scheduler's end.
        is_cut: whether all its streams were ended, because the denoiser was changed.
        direction: of the first move of the timestep.
        beside: what its streams give, by latent input.
        spent: what its trajectories have passed on, likewise; with the generation of another denoiser that it goes on
            with.
    """

    caller: Caller
    timesteps: object
    first: float | None
    is_known: bool
    warmup: int
    components: int
    plan: Plan
    calls: Counter[str] = field(default_factory=Counter)
    used: set[int] = field(default_factory=set)
    rows: int = 0
    foreseen: int = 0
    unforeseen: Counter[str] = field(default_factory=Counter)
    open: int = 0
    is_cut: bool = False
    direction: float = 0.0
    beside: defaultdict[str, OutputsBeside] = field(default_factory=outputs_by_latent)
    spent: defaultdict[str, Spent] = field(default_factory=spent_by_latent)
    _last: float | None = None

    def starts(self, timestep: float | None) -> bool:
        """Whether a stream that starts at this timestep is one more of the generation's own beginning."""
        return timestep is not None and timestep == self.first == self._last

    def is_over(self, timestep: float | None) -> bool:
        """Whether a stream that starts at this timestep shows that another generation has begun."""
        if self.open <= 0 or (timestep == self.first and self._last != self.first):
            return True
        if timestep is None or self.first is None:
            return False
        if self.direction == 0.0:
            return timestep != self.first and not self.is_known
        return (timestep - self.first) * self.direction < 0.0

    def count(self, timestep: float | None, reason: str | None, branches: Collection[int], rows: int) -> None:
        """Take a call. reason: why it was exact; None where it was not. branches: that its rows were shared by."""
        self.calls[reason or ""] += 1
        self.used |= set(branches)
        self.rows = self.rows or rows
        self._last = timestep
        if timestep is not None and self.first is not None:
            self.direction = self.direction or timestep - self.first

    def lessons(self, *, is_over: bool) -> dict[str, str]:
        """What to warn of, by kind: a sentence each.

        Args:
            is_over: whether no more calls will come.
        """
        found = {}
        total, lagged = self.calls.total(), self.calls[""]
        could = total - sum(count for reason, count in self.calls.items() if reason in MEANT)
        anew = [(reason, count) for reason, count in self.calls.most_common() if reason in _WHY]
        if anew and 2 * lagged < could:
            reason, count = anew[0]
            why, way_out = _WHY[reason]
            found[f"exact: {reason}"] = (
                f"of {could} denoiser calls of a generation that could have been lagged {lagged} were, so that little "
                f"time or none was won: {count} were exact because {why}. {way_out} engine.stats counts all reasons."
            )
        if any(spent.is_too_much for spent in self.spent.values()):
            found["guidance rose"] = (
                "guidance grew stronger within a generation: what look-ahead had passed on before, little at the scale "
                "it had, may be more in the picture than the quality allows. Run such generations with exact=True "
                "(--exact), or by a plan of branches alone (--branches 2), which compute guidance exactly at the same "
                "time."
            )
        came_to_end = is_over and (self.open == 0 or not self.is_known)
        if came_to_end and self.calls[WARM_UP] == total and self.components > 1 and total > 0:
            shorter = ", or a shorter warm-up (warmup=, --warmup)" if self.warmup > 2 else ""
            found["short"] = (
                f"all {total} denoiser calls of a generation were exact, so that no time was won: the warm-up is the "
                f"first {self.warmup} of each trajectory. Take more steps{shorter}."
            )
        if self.unforeseen.total() > self.foreseen:
            why = self.unforeseen.most_common(1)[0][0]
            found["unforeseen"] = (
                f"of {self.unforeseen.total() + self.foreseen} denoiser calls of a generation that could have been "
                f"begun with the first call of their step {self.foreseen} were, so that branches waited for each "
                f"other: {why}. Make a plan without branches for streams: partition-model with --branches 1."
            )
        is_complete = self._last != self.first or (is_over and self.plan.streams == 1)  # a step at least
        if self.used and len(self.used) < self.plan.branches and is_complete:
            found["idle"] = self._idle()
        return found

    def _idle(self) -> str:
        """What to say of ranks that have done nothing."""
        plan = self.plan
        branches = [branch for branch in range(plan.branches) if branch not in self.used]
        ranks = [
            rank for branch in branches for rank in range(branch * self.components, (branch + 1) * self.components)
        ]
        each = plan.branches_per_stream
        if {branch // each for branch in self.used} != set(range(plan.streams)):
            why = (
                f"a step's calls were of fewer streams than the {plan.streams} that the plan has branches for: "
                "guidance is off, or one call holds both halves. Make a plan for such calls: partition-model with "
                "--guidance-style, or --branches 1."
            )
        else:
            possible = math.gcd(self.rows, each)
            fewer = plan.streams * (possible if possible < each else 1)  # rows may stay together for other reasons
            why = (
                f"calls of {self.rows} {'rows' if self.rows > 1 else 'row'} cannot be shared evenly by {each} branches "
                "of the plan, so that one of these computes all rows. Make a plan of fewer branches for such calls: "
                f"partition-model with --branches {fewer}."
            )
        return f"rank {', '.join(map(str, ranks))} did nothing in a generation: {why}"


class Generations:
    """The generations of an engine's callers, and what the user has been told.

    passed_by: attribute of the pipeline -> calls of the second denoiser that it holds, which no plan covers.

    Args:
        warned: what the user has been warned of, by all of the engine.
        denoisers: those of the engine's denoisers so far, which these join.
    """

    def __init__(self, warned: set[str], denoisers: list[Generations]) -> None:
        self.passed_by: Counter[str] = Counter()
        self._warned = warned
        self._open: list[Generation] = []
        self._denoisers = denoisers
        denoisers.append(self)

    def of(self, caller: Caller, timesteps: object) -> Generation | None:
        """The generation that a caller is at, if it is at one."""
        found = (g for g in reversed(self._open) if g.caller.is_same(caller) and g.timesteps is timesteps)
        return next(found, None)

    def spent(self, caller: Caller, timesteps: object, timestep: float | None) -> defaultdict[str, Spent]:
        """What one that begins at a timestep has been passed on: by another denoiser's, if it goes on there."""
        others = [each.of(caller, timesteps) for each in self._denoisers if each is not self]
        goes_on = (other.spent for other in others if other is not None and not other.is_over(timestep))
        return next(goes_on, spent_by_latent())

    def begin(self, generation: Generation) -> None:
        """Take a new one. Its pipeline's last one is over; loops that are no pipeline's may take turns, up to KEPT."""
        own = [old for old in self._open if old.caller.is_same(generation.caller)]
        over = own if generation.caller.pipeline is not None else own[: -KEPT + 1]
        over += self._open[: max(0, len(self._open) - MOST + 1)]
        for old in list(self._open):
            if old in over or old.caller.is_gone:
                self.end(old)
        self._open.append(generation)

    def end(self, generation: Generation) -> None:
        """No more calls will come; nothing where that is known already."""
        if generation in self._open:
            self._open.remove(generation)
            self._tell(generation, is_over=True)

    def tell(self) -> None:
        """Warn of what is known so far."""
        for generation in list(self._open):
            if generation.caller.is_gone:
                self.end(generation)
            else:
                self._tell(generation, is_over=False)

    def cut(self) -> None:
        """All streams were ended, because the denoiser was changed."""
        for generation in self._open:
            generation.is_cut = True

    def end_all(self) -> None:
        """No more calls will come at all."""
        for generation in list(self._open):
            self.end(generation)

    def _tell(self, generation: Generation, *, is_over: bool) -> None:
        lessons = generation.lessons(is_over=is_over)
        if self.passed_by:
            names = ", ".join(f"{name} ({count} calls)" for name, count in self.passed_by.items())
            lessons["passed by"] = (
                f"the pipeline has a second denoiser, which the plan does not cover: {names}. The pipeline runs it "
                "whole, so that the plan's speed-up holds for the other calls only. Give parallelize a plan for each "
                "by its name in the pipeline."
            )
        for kind, sentence in lessons.items():
            warn_once(self._warned, sentence, kind)
