"""Plan files as such, whatever plans they hold: their schema version, their size, and how they are read and written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from partitioner.errors import PlanError
from partitioner.plan.fields import shown_briefly
from profiles.json_files import JsonFileError, read_json, write_atomic

SCHEMA_VERSION = 1
MAX_PLAN_BYTES = 4 << 20  # the largest known denoiser, 16,000 nodes, needs 2 MiB


def read_plan_file(path: str | os.PathLike[str], most: int) -> object:
    """The document that a plan file of at most so many bytes holds; PlanError in one sentence if it holds none."""
    try:
        return read_json(path, most)
    except JsonFileError as error:
        raise PlanError(str(error)) from None


def write_plan_file(path: str | os.PathLike[str], data: bytes, overwrite: bool) -> None:
    """Write a plan file, whole or not at all; PlanError if it exists or cannot be written."""
    try:
        write_atomic(path, data, overwrite)
    except JsonFileError as error:
        raise PlanError(str(error)) from None


def check_version(document: Mapping[str, Any], name: str) -> None:
    """PlanError if a file's document is of another schema version. name: of the file."""
    version = document.get("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:
        raise PlanError(
            f"{name} has plan schema version {shown_briefly(version)}; this release reads version "
            f"{SCHEMA_VERSION}: make the plan again with partition-model"
        )


def as_file(document: Mapping[str, Any], most: int) -> bytes:
    """The bytes of a plan file; PlanError if they are more than are read."""
    data = (json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1) + "\n").encode()
    if len(data) > most:
        raise PlanError(f"the plan would have {len(data)} bytes; at most {most} are read")
    return data
