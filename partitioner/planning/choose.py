"""choose: which of the candidates becomes the plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from partitioner.errors import InfeasibleError
from partitioner.fleet import Fleet
from partitioner.plan.speedup import trajectory_speedup
from partitioner.planning.candidates import Candidate
from partitioner.planning.expected_quality import STEPS, Advice, QualityAdvisor
from partitioner.planning.options import PlanOptions, Prefer, default_warmup
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

    "speed" takes the least step time and "memory" the least memory of the rank that holds most. "quality", which also
    decides between candidates that are equal in these, compares in this order:

    1. Measured quality. Best are plans that came closer to the sequential output than fewer steps on one device in the
       same time, by MARGIN_DB or more, and plans of which this was not measured; then those that came closer by less;
       last those that did not come closer. See Advice.doubt.
    2. At most a share of IDLE_SHARE of the devices stays idle.
    3. Nothing that is read is stale. Where async mode was measured to be better than look-ahead over as many
       components, it is the other way round: async mode comes first.
    4. Plans that are exact, every branch one component: of these the one that is done first, see ``_mean_step_ms``.
    5. More branches before fewer, for they are exact.
    6. Fewer idle devices.
    7. A shorter step.

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

    def quality(c: Candidate) -> tuple[float, ...]:
        idle = device_count - c.ranks
        async_is_better = advisor is not None and advisor.prefers_async(c.components)
        worse = c.is_stale != async_is_better
        doubt = _doubt(c, advisor, options, sequential_ms)
        mean = _mean_step_ms(c, STEPS if advisor is None else advisor.sampling.steps)
        rest = (0, mean, idle, c.step_ms) if c.components == 1 else (1, -c.branches, idle, c.step_ms)
        return doubt, idle > IDLE_SHARE * device_count, worse, *rest

    keys: dict[Prefer, Callable[[Candidate], tuple[float, ...]]] = {
        "quality": quality,
        "speed": lambda c: (c.step_ms, *quality(c)),
        "memory": lambda c: (c.memory_bytes, *quality(c)),
    }
    faster = [c for c in feasible if c.step_ms < sequential_ms]
    chosen = min(feasible if options.force else faster or feasible, key=keys[options.prefer])
    fits_one = any(whole.item_bytes.sum() + whole.activation_bytes.max() <= device.memory_bytes for device in fleet)
    if not faster and device_count > 1 and fits_one and not options.force:
        raise InfeasibleError(
            f"the best plan for {device_count} devices is predicted to take {chosen.step_ms:.4g} ms per step and one "
            f"device {sequential_ms:.4g} ms; use one device, faster links, or --force"
        )
    return chosen


def _mean_step_ms(c: Candidate, steps: int) -> float:
    """Over a trajectory of exact steps, in the first of which no stream is foreseen."""
    return c.step_ms + (c.first_step_ms - c.exact_step_ms) / steps


def _doubt(c: Candidate, advisor: QualityAdvisor | None, options: PlanOptions, sequential_ms: float) -> int:
    """Advice.doubt of a candidate; async mode of which nothing was measured is judged as look-ahead over as many
    components is."""
    advice = advice_on(c, advisor, options, sequential_ms)
    if advice is not None and advice.nearest_margin_db is None and c.is_stale:
        advice = advice_on(replace(c, mode="lookahead"), advisor, options, sequential_ms)
    return 0 if advice is None else advice.doubt


def advice_on(
    c: Candidate, advisor: QualityAdvisor | None, options: PlanOptions, sequential_ms: float
) -> Advice | None:
    """What was measured of plans like this candidate with the sampler that will be used.

    Args:
        c: The candidate.
        advisor: What was measured; None: nothing.
        options: The warm-up and predictor that the plan would have.
        sequential_ms: Time of a whole call on one device, which its speed-up is taken over.

    Returns:
        None where no sampler is known, the candidate is exact, or it has no split.
    """
    if advisor is None or advisor.sampling.scheduler is None or c.components == 1 or c.reason is not None:
        return None
    warmup = options.warmup or default_warmup(c.components, c.mode)
    share = advisor.exact_share(c.components, c.mode)
    speedup = trajectory_speedup(
        advisor.sampling.steps,
        advisor.sampling.scheduler,
        c.mode,
        warmup,
        sequential_ms=sequential_ms,
        first_step_ms=c.first_step_ms,
        exact_step_ms=c.exact_step_ms,
        step_ms=c.step_ms,
        config=advisor.sampling.scheduler_config,
        exact_share=share,
    )
    predictor = options.predictor or advisor.async_predictor(c.components)
    return advisor.advise(c.components, c.mode, predictor, speedup, share)
