"""The figures that AsyncDiff's paper publishes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from profiles.json_files import read_json

PUBLISHED = Path(__file__).with_name("asyncdiff_published.json")


def read_published() -> dict[str, Any]:
    """The published figures, with notes that say what they are."""
    document = read_json(PUBLISHED, 1_000_000)
    assert isinstance(document, dict)
    return document
