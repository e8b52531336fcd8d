"""read_prompts: the prompts of a data set, from COCO's captions, DrawBench's table, or a list."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from partitioner.errors import UsageError, first_line

COLUMNS = ("prompts", "prompt", "caption", "text")  # names of the column that holds the prompts, in lower case


@dataclass(frozen=True)
class Prompt:
    """A prompt, and the file name of the picture that it describes; None where there is no such picture."""

    text: str
    image: str | None = None


def read_prompts(file: Path) -> list[Prompt]:
    """The prompts in a file, in its order.

    Args:
        file: COCO's captions (JSON with "images" and "annotations"): one prompt per picture, pictures by id, the i-th
            with caption i modulo the number of its captions, as DistriFusion's and Hybridiff's scripts take them.
            Or JSON with a list of texts, or of objects with "prompt" and, if there is a picture, "image". Or a .csv
            with a column "Prompts" (DrawBench), "prompt", "caption" or "text". Else a prompt per line.

    Raises:
        UsageError: it cannot be read, or holds no prompt.
    """
    try:
        if file.suffix.lower() == ".json":
            found = _from_json(json.loads(file.read_text(encoding="utf-8")))
        elif file.suffix.lower() == ".csv":
            with file.open(encoding="utf-8", newline="") as lines:
                found = _from_table(list(csv.DictReader(lines)))
        else:
            found = [Prompt(line.strip()) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--prompts {file} cannot be read: {first_line(error) or type(error).__name__}") from error
    if not found:
        raise UsageError(f"--prompts {file} holds no prompt")
    return found


def digest(prompts: Sequence[Prompt]) -> str:
    """SHA-256 of the texts, by which pictures made of other prompts are told."""
    return hashlib.sha256("\n".join(prompt.text for prompt in prompts).encode()).hexdigest()


def _from_json(content: Any) -> list[Prompt]:
    if isinstance(content, dict):
        captions: dict[Any, list[tuple[int, str]]] = {}
        for note in content["annotations"]:
            captions.setdefault(note["image_id"], []).append((note["id"], " ".join(note["caption"].split())))
        images = [
            image for image in sorted(content["images"], key=lambda image: image["id"]) if image["id"] in captions
        ]
        own = [sorted(captions[image["id"]]) for image in images]
        return [
            Prompt(texts[number % len(texts)][1], image["file_name"])
            for number, (image, texts) in enumerate(zip(images, own, strict=True))
        ]
    return [Prompt(item) if isinstance(item, str) else Prompt(item["prompt"], item.get("image")) for item in content]


def _from_table(rows: list[dict[str, str]]) -> list[Prompt]:
    names = {name.strip().lower(): name for name in (rows[0] if rows else {})}
    column = next((names[name] for name in COLUMNS if name in names), None)
    if column is None:
        raise ValueError(f"it has no column {', '.join(COLUMNS)}")
    return [Prompt(row[column].strip()) for row in rows if row[column] and row[column].strip()]
