"""describe, describe_search: a plan's figures, and how it was found, as one JSON document."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

from partitioner.plan.plan import Plan
from partitioner.plan.ranks import seat_of
from partitioner.planning.advice import Advice
from partitioner.planning.sampling_setup import ANY, SamplingSetup
from partitioner.simulator.speed_of_light import SpeedOfLight

if TYPE_CHECKING:
    from partitioner.planning.planner import Planning


def describe(plan: Plan, path: str | None, sampling: SamplingSetup = ANY) -> dict[str, Any]:
    """What a plan says of itself, as documented for ``partition-model --json``.

    Args:
        plan: The plan.
        path: Its file, if it has one.
        sampling: The trajectory that ``speedup_trajectory`` is given for.

    Returns:
        A JSON document; times in ms, sizes in bytes, shares and gaps as fractions of 1.
    """
    predicted = plan.predicted
    return {
        "plan": path,
        "model": plan.model,
        "class_name": plan.class_name,
        "fingerprint": plan.fingerprint,
        "devices": list(plan.devices),
        "guidance_style": plan.guidance_style,
        "guidance_scale": plan.guidance_scale,
        "driver_modules": [module.model_dump() for module in plan.driver_modules],
        "branches": plan.branches,
        "streams": plan.streams,
        "branch_rows": list(plan.branch_rows),
        "calls_per_step": plan.calls_per_step,
        "images": plan.images,
        "rows_of_branches": plan.rows_of_branches,
        "components_per_branch": plan.components,
        "mode": plan.mode,
        "period": plan.period,
        "warmup": plan.warmup,
        "microbatches": plan.microbatches,
        "predictor": plan.predictor,
        "cost_source": f"{plan.cost_source.kind} {plan.cost_source.device}",
        "cost_covered": plan.cost_source.covered,
        "sequential_ms": predicted.sequential_ms,
        "step_ms": predicted.step_ms,
        "exact_step_ms": predicted.exact_step_ms,
        "lower_bound_ms": predicted.lower_bound_ms,
        "gap": predicted.gap,
        "speedup_step": predicted.speedup_step,
        "speedup_trajectory": plan.speedup(sampling.steps, sampling.scheduler, sampling.scheduler_config),
        "steps": sampling.steps,
        "speed_of_light": asdict(light_of(plan, sampling)),
        "bytes_per_step": predicted.bytes_per_step,
        "staleness": predicted.staleness,
        "macs": predicted.macs,
        "components": [_component(plan, rank) for rank in range(plan.ranks)],
    }


def describe_several(described: Mapping[str, dict[str, Any]], path: str) -> dict[str, Any]:
    """What a file with the plans of several denoisers says.

    Args:
        described: What each of them says (``describe``), by the pipeline's names of their denoisers.
        path: The file.

    Returns:
        A JSON document with ``plan``, ``model``, ``devices`` and, by name, ``denoisers``.
    """
    first = next(iter(described.values()))
    denoisers = {name: {**document, "plan": None} for name, document in described.items()}
    return {"plan": path, "model": first["model"], "devices": first["devices"], "denoisers": denoisers}


def describe_search(planning: Planning, seconds: Mapping[str, float]) -> dict[str, Any]:
    """How the plan was found: what else was considered, the baselines, and the time that it took.

    Args:
        planning: The plan and how it was found.
        seconds: What took how long, by name.

    Returns:
        More keys for the document of ``describe``; times in ms, sizes in bytes.
    """
    certificate, refinement = planning.certificate, planning.refinement
    return {
        "expected_psnr_db": planning.advice and _db(planning.advice.psnr_db),
        "fewer_steps_psnr_db": planning.advice and _db(planning.advice.fewer_steps_db),
        "quality": planning.advice and _quality(planning.advice),
        "idle_devices": planning.idle,
        "proof": certificate
        and {"result": str(certificate), "bound_ms": round(certificate.bound_ms, 6), "clusters": certificate.clusters},
        "refinement": refinement
        and [
            {
                "predicted_ms": list(round_.predicted_ms),
                "measured_ms": list(round_.measured_ms),
                "error": round_.error,
                "slowest_over_mean": round_.slowest,
                "best": number == refinement.best,
            }
            for number, round_ in enumerate(refinement.rounds)
        ],
        "candidates": [
            {
                "branches": candidate.branches,
                "streams": candidate.branching.streams,
                "branch_rows": list(candidate.branching.rows),
                "components": candidate.components,
                "mode": candidate.mode,
                "period": candidate.period,
                "chosen": candidate is planning.chosen,
                "reason": candidate.reason,
                "margin_db": advice and _db(advice.margin_db),
                "nearest_margin_db": advice and _db(advice.nearest_margin_db),
                "passed_over": passed_over,
                "step_ms": None if candidate.reason else round(candidate.step_ms, 6),
                "staleness": None if candidate.reason else round(candidate.evaluation.staleness, 6),
                "bytes_per_step": None if candidate.reason else candidate.bytes_per_step,
                "memory_bytes": None if candidate.reason else candidate.memory_bytes,
            }
            for candidate, advice, passed_over in zip(
                planning.candidates, planning.advices, planning.passed_over, strict=True
            )
        ],
        "baselines": {
            name: {key: value for key, value in asdict(baseline).items() if value is not None}
            for name, baseline in planning.baselines.items()
        },
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }


def light_of(plan: Plan, sampling: SamplingSetup) -> SpeedOfLight:
    """Where the predicted speed-up goes, one loss after the other.

    Args:
        plan: The plan; ``ideal`` is the number of its devices.
        sampling: The trajectory that ``remaining`` is given for.
    """
    predicted = plan.predicted
    computes = [
        figures.compute_ms / plan.periods[k % plan.components] for k, figures in enumerate(predicted.components)
    ]
    slowest = max(computes)
    return SpeedOfLight(
        ideal=float(plan.ranks),
        balanced=round(predicted.sequential_ms / slowest, 6) if slowest > 0 else 1.0,
        connected=predicted.speedup_step,
        remaining=plan.speedup(sampling.steps, sampling.scheduler, sampling.scheduler_config),
        calls=sampling.steps,
    )


def _quality(advice: Advice) -> dict[str, Any]:
    sampling, expected, fewer = advice.sampling, advice.expected, advice.fewer_steps
    beside = advice.nearest_fewer
    nearest = expected if expected is not None and expected.beyond else None
    return {
        "exact": advice.exact,
        "psnr_db": _db(advice.psnr_db),
        "fewer_steps_psnr_db": _db(advice.fewer_steps_db),
        "nearest_fewer_steps_psnr_db": None if beside is None or beside.beyond else round(beside.psnr_db, 2),
        "fewer_steps_better": advice.against,
        "other_settings": advice.other_settings,
        "denoisers": [] if expected is None else list(expected.denoisers),
        "steps": sampling.steps,
        "scheduler": sampling.scheduler,
        "guidance_scale": sampling.scale_in_effect,
        "guidance_scale_is_default": sampling.scale_is_default,
        "measured_at": [] if expected is None else list(expected.between),
        "measured_steps": [] if expected is None else list(expected.steps),
        "nearest": nearest
        and {
            "guidance_scale": nearest.guidance_scale,
            "psnr_db": round(nearest.psnr_db, 2),
            "fewer_steps_psnr_db": None if fewer is None or fewer.beyond else round(fewer.psnr_db, 2),
            "fewer_steps_better": advice.doubt == 2,
        },
        "no_lookahead": sampling.refusal,
        "exact_share": advice.exact_share,
        "speedup": advice.speedup,
    }


def _db(value: float | None) -> float | None:
    """Rounded; None for what is exact, too, of which JSON has no number."""
    return None if value is None or value == math.inf else round(value, 2)


def _component(plan: Plan, rank: int) -> dict[str, Any]:
    branch, component = seat_of(rank, plan.components)
    figures = plan.predicted.components[branch * plan.components + component]
    runs = [
        [key for key, _ in run]
        for owner, run in groupby(plan.placement.items(), lambda item: item[1])
        if owner == component
    ]
    return {
        "rank": rank,
        "branch": branch,
        "component": component,
        "device": plan.devices[rank],
        "nodes": sum(map(len, runs)),
        "pieces": len(runs),
        "period": plan.periods[component],
        "compute_ms": figures.compute_ms,
        "macs": figures.macs,
        "parameters": figures.parameters,
        "parameter_bytes": figures.parameter_bytes,
        "memory_bytes": figures.memory_bytes,
        "message_bytes": figures.message_bytes,
        "slot_bytes": figures.slot_bytes,
        "graph_bytes": figures.graph_bytes,
        "receive_bytes": figures.receive_bytes,
        "send_bytes": figures.send_bytes,
        "modules": " + ".join(map(_range, runs)),
    }


def _range(keys: Sequence[str]) -> str:
    """'first.module .. last.module' of a run of node keys; an operator outside every module stands for itself."""
    first, last = (key.split("/")[0] or key[1:] for key in (keys[0], keys[-1]))
    return first if first == last else f"{first} .. {last}"
