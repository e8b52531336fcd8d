"""describe_models: the names that --model takes, as one JSON document; models_text: the same as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from partitioner.models.built_in import BUILT_IN, built_in
from partitioner.models.checked import CheckedName, checked_names
from partitioner.models.guidance import guidance_style
from partitioner.models.registry import ARCHITECTURES, model_names
from partitioner.tables import table_text


def describe_models() -> dict[str, Any]:
    """What is known of every name, without importing torch, except where a registered model does.

    Returns:
        A JSON document: ``models``, a list of ``name``, ``class_name``, ``published_as``, ``parameters``, ``tokens``
        (of a UNet the pixels of its latent), ``steps``, ``scheduler``, ``guidance_style``, ``guidance_scale``,
        ``note`` and ``checked``; what is not known is None. ``checked`` says what was measured when the name was
        planned for ``devices``: ``seconds``, ``peak_bytes``, or ``failed``, a sentence.
    """
    checked = checked_names()
    rows = [_built_in(name, checked.get(name)) for name in BUILT_IN]
    return {"models": rows + [_registered(name) for name in model_names() if name not in BUILT_IN]}


def models_text(document: Mapping[str, Any]) -> str:
    """The document of describe_models as text for people: a table, and the notes under it."""
    headers = ["name", "parameters", "tokens", "steps", "sampler", "guidance", "checked"]
    rows = [
        [
            row["name"],
            "" if row["parameters"] is None else f"{row['parameters'] / 1e9:.2f} B",
            "" if row["tokens"] is None else f"{row['tokens']:,}",
            "" if row["steps"] is None else str(row["steps"]),
            (row["scheduler"] or "").removesuffix("Scheduler"),
            row["guidance_style"] if row["guidance_scale"] is None
            else f"{row['guidance_style']} {row['guidance_scale']:g}",
            _checked(row["checked"]),
        ]
        for row in document["models"]
    ]  # fmt: skip
    notes = [f"{row['name']}: {row['note']}" for row in document["models"] if row["note"]]
    legend = "tokens: of one image or video at the default size; of UNets the pixels of the latent"
    return "\n".join([table_text(headers, rows, left={0, 4, 5, 6}), "", legend, *notes])


def _built_in(name: str, checked: CheckedName | None) -> dict[str, Any]:
    known = built_in(name)
    return {
        "name": name,
        "class_name": known.class_name,
        "published_as": known.published_as,
        "parameters": known.parameters,
        "tokens": known.tokens,
        "steps": known.steps,
        "scheduler": known.pipeline["scheduler"][1],
        "guidance_style": guidance_style(ARCHITECTURES[known.class_name].guidance_style, known.config, known.pipeline),
        "guidance_scale": known.guidance_scale,
        "note": known.note,
        "checked": checked and checked.as_json(),
    }


def _registered(name: str) -> dict[str, Any]:
    architecture = ARCHITECTURES[name]
    unknown = ("published_as", "parameters", "tokens", "steps", "scheduler", "guidance_scale", "checked")
    return {
        "name": name,
        "class_name": getattr(architecture.build, "__name__", name),
        **dict.fromkeys(unknown),
        "guidance_style": architecture.guidance_style,
        "note": f"registered by {architecture.describe.__module__}",
    }


def _checked(checked: Mapping[str, Any] | None) -> str:
    if checked is None:
        return "not yet"
    if checked["failed"] is not None:
        return f"fails: {checked['failed']}"
    memory = checked["peak_bytes"] / 1e9
    return f"planned for {checked['devices']} devices in {checked['cpu_seconds']:.0f} s of CPU time and {memory:.1f} GB"
