"""quality_text, trajectory_text, idle_text: what was measured of plans like one, and its speed-up by that."""

from __future__ import annotations

from collections.abc import Iterator

from partitioner.branch_text import Document
from partitioner.planning.advice import MARGIN_DB

_INDENT = 17 * " "
_IDLE_BECAUSE = {
    "near fewer steps": (
        f"with more, the output was less than {MARGIN_DB:g} dB better than that of fewer steps on one device"
    ),
    "not measured": "some plans with more were not measured with this sampler at these steps and this guidance",
    "no faster": "with more it would be done no sooner, or hardly, for so many of its calls are exact",
}


def trajectory_text(document: Document, remark: str) -> Iterator[str]:
    """The speed-up over a trajectory: with as many exact calls as were measured, and with none but the warm-up.

    Args:
        document: Of ``partitioner.report``.
        remark: What is said of estimates.
    """
    quality, steps, most = document.get("quality") or {}, document["steps"], document["speedup_trajectory"]
    share = quality.get("exact_share")
    ahead = document["mode"] == "lookahead" and document["components_per_branch"] > 1
    speedup = most if share is None else quality["speedup"]
    if share is not None:
        measured = quality["measured_at"]
        between = f", interpolated between guidance {measured[0]:g} and {measured[1]:g}" if len(measured) > 1 else ""
        yield f"trajectory       speed-up {speedup:.2f} x over {steps} steps, {share:.0%} of their calls exact{remark},"
        yield f"{_INDENT}as where quality was measured{between}; at most {most:.2f} x, with the warm-up alone"
    else:
        yield f"trajectory       speed-up {speedup:.2f} x over {steps} steps with warm-up{remark}"
    if ahead and share is None:
        yield f"{_INDENT}at most: steps are made exact where the picture would suffer (run-plan --quality)"
    if speedup <= 1 and len(document["components"]) > 1:
        yield f"note             over {steps} steps one device is as fast, for so many of their calls are exact"


def quality_text(document: Document) -> list[str]:
    """What quality to expect of a plan; nothing where no profile was asked."""
    quality = document.get("quality")
    if not quality:
        return []
    exact = "quality          exact: the output is that of one device"
    lines = [exact] if quality["exact"] else [*_figures(quality, document["model"])]
    refusal = quality["no_lookahead"]
    if document["mode"] == "lookahead" and document["components_per_branch"] > 1 and refusal is not None:
        lines.append(
            f"note             all calls of this plan will be exact, with no look-ahead: of {quality['scheduler']},"
        )
        lines.append(f"{_INDENT}{refusal}")
    return lines


def idle_text(document: Document) -> list[str]:
    """Why devices are left idle, where some are."""
    if not document.get("idle_devices"):
        return []
    used = document["branches"] * document["components_per_branch"]
    larger = {c["passed_over"] for c in document["candidates"] if c["branches"] * c["components"] > used}
    reasons = [words for why, words in _IDLE_BECAUSE.items() if why in larger] or ["see below"]
    lines = [f"note             {document['idle_devices']} left idle (--prefer speed uses them): {reasons[0]}"]
    return lines + [f"{_INDENT}and {words}" for words in reasons[1:]]


def _figures(quality: Document, model: str) -> Iterator[str]:
    """What is known of the output of a plan that is not exact; or of the nearest guidance scale that is known."""
    known = quality["nearest"] or quality
    if known["psnr_db"] is None:
        yield f"quality          not measured for plans like this ({_setup(quality)})"
        return
    denoisers = quality["denoisers"]
    foreign = "" if model in denoisers else f"not measured for {model}; "
    figure = f"{known['psnr_db']:.1f} dB against the sequential output"
    figure += f" with the denoisers {', '.join(denoisers)}" if foreign else ""
    if quality["nearest"] is None:
        yield f"quality          {foreign}{figure}"
        yield f"{_INDENT}({_setup(quality)})"
    else:
        yield f"quality          not measured for {_setup(quality)};"
        yield f"{_INDENT}at {known['guidance_scale']:g}, the nearest guidance scale that was measured: {figure}"
    beside = quality["nearest_fewer_steps_psnr_db"]
    if known["fewer_steps_psnr_db"] is not None:
        yield f"{_INDENT}fewer sequential steps in the same time: {known['fewer_steps_psnr_db']:.1f} dB"
    elif beside is not None:
        yield f"{_INDENT}fewer sequential steps: not measured in the same time; {beside:.1f} dB in the nearest"
    if known["fewer_steps_better"]:
        yield "note             fewer steps on one device were as good; prefer them, or use fewer components"


def _setup(quality: Document) -> str:
    """What the figures of quality are for."""
    scheduler = quality["scheduler"] or "the worst sampler that was measured"
    scheduler += " (measured with other settings)" if quality["other_settings"] else ""
    scale, measured = quality["guidance_scale"], quality["measured_at"]
    if scale is None:
        guidance = f"guidance {measured[0]:g}, the highest that was measured" if measured else "guidance not known"
    else:
        guidance = f"guidance {scale:g}" + (" by default" if quality["guidance_scale_is_default"] else "")
    if len(measured) > 1:
        guidance += f", interpolated between {measured[0]:g} and {measured[1]:g}"
    steps = sorted(set(quality["measured_steps"]) - {quality["steps"]})
    others = f" (measured with {' and '.join(map(str, steps))})" if steps else ""
    return f"{quality['steps']} steps{others}, {scheduler}, {guidance}"
