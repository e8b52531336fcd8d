"""choose: which of the candidates becomes the plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from partitioner.errors import InfeasibleError
from partitioner.fleet import Fleet
from partitioner.planning.candidates import Candidate
from partitioner.planning.expected_quality import QualityAdvisor
from partitioner.planning.judge import Judge
from partitioner.planning.options import PlanOptions, Prefer
from partitioner.search.problem import Problem

IDLE_SHARE = 0.25  # of the devices, that quality may leave idle for exact branches: one of five, not one of three


def choose(
    candidates: Sequence[Candidate],
    fleet: Fleet,
    whole: Problem,
    sequential_ms: float,
    options: PlanOptions,
    advisor: QualityAdvisor | None = None,
) -> Candidate:
    """Choose the best candidate under ``options.prefer``, among those that are faster than one device if there are any.

    "speed" takes the least step time and "memory" the least memory of the rank that holds most. "quality" takes none
    that is done no sooner than another on fewer devices, by the exact calls that were measured, nor one that is hardly
    sooner than an exact one, see Judge.is_no_faster; it does where that is forced and no sampler is known. Then it
    compares in this order, as the others do where candidates are equal:

    1. What was measured before what was not: at these steps and this guidance scale, at another scale, not at all.
       Where nothing was measured of the sampler, that tells no plan from another. See Judge.remoteness.
    2. Measured quality. Best are plans that came closer to the sequential output than fewer steps on one device in the
       same time, by MARGIN_DB or more; then those that came closer by less; last those that did not come closer. See
       Advice.doubt.
    3. Of the devices that the largest plan takes of those that are best in 1 and 2, at most a share of IDLE_SHARE stays
       idle.
    4. Nothing that is read is stale. Where async mode was measured to be better than look-ahead over as many
       components, it is the other way round: async mode comes before look-ahead.
    5. Plans that are exact, every branch one component: of these the one that is done first.
    6. More branches before fewer, for they are exact.
    7. Fewer idle devices.
    8. A shorter step.

    Args:
        candidates: All that were considered.
        fleet: The devices.
        whole: The problem of a whole call.
        sequential_ms: Time of a whole call on the fastest device alone.
        options: What the user prefers, and whether a plan slower than one device may be made.
        advisor: What was measured of quality; None: nothing.

    Raises:
        InfeasibleError: No split over all the devices exists (or over all but an odd one), or only slower ones than
            one device, which could hold the whole denoiser.
    """
    device_count = len(fleet)
    with_all = [c for c in candidates if c.components == max(1, device_count // c.branches)]
    if all(c.reason for c in with_all):
        reasons = dict.fromkeys(f"{c.branches} x {c.components}: {c.reason}" for c in with_all)
        raise InfeasibleError("; ".join(reasons))
    feasible = [candidate for candidate in candidates if candidate.reason is None]
    if advisor is not None:
        feasible = [c for c in feasible if not advisor.runs_exactly(c.components, c.mode)] or feasible
    judge = Judge(feasible, options, sequential_ms, advisor)

    faster = [c for c in feasible if c.step_ms < sequential_ms]
    pool = feasible if options.force else faster or feasible
    knows_sampler = advisor is not None and advisor.sampling.scheduler is not None
    if options.prefer == "quality" and (knows_sampler or not options.force):
        pool = [c for c in pool if not judge.is_no_faster(c, pool)]
    best = min((judge.remoteness(c), judge.doubt(c)) for c in pool)
    useful = max(c.ranks for c in pool if (judge.remoteness(c), judge.doubt(c)) == best)

    def quality(c: Candidate) -> tuple[float, ...]:
        idle = useful - c.ranks
        async_is_better = advisor is not None and advisor.prefers_async(c.components)
        worse = c.components > 1 and c.is_stale != async_is_better
        known = judge.remoteness(c), judge.doubt(c)
        rest = (0, judge.mean_step_ms(c), idle, c.step_ms) if c.components == 1 else (1, -c.branches, idle, c.step_ms)
        return *known, idle > IDLE_SHARE * useful, worse, *rest

    keys: dict[Prefer, Callable[[Candidate], tuple[float, ...]]] = {
        "quality": quality,
        "speed": lambda c: (c.step_ms, *quality(c)),
        "memory": lambda c: (c.memory_bytes, *quality(c)),
    }
    chosen = min(pool, key=keys[options.prefer])
    fits_one = any(whole.item_bytes.sum() + whole.activation_bytes.max() <= device.memory_bytes for device in fleet)
    if not faster and device_count > 1 and fits_one and not options.force:
        raise InfeasibleError(
            f"the best plan for {device_count} devices is predicted to take {chosen.step_ms:.4g} ms per step and one "
            f"device {sequential_ms:.4g} ms; use one device, faster links, or --force"
        )
    return chosen
