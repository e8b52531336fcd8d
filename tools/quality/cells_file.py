"""The results file of tools.quality.cells: the cells that are measured, by their keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from partitioner.errors import UsageError
from profiles.json_files import write_atomic

Results = dict[str, Any]  # "versions", "commands", "date"; "cells": key -> a MeasuredCell as JSON, or {"failed": why}


def read_results(path: Path, versions: str) -> Results:
    """The results in a file; none where it is not there.

    Raises:
        UsageError: they were measured with other versions of the packages.
    """
    if not path.exists():
        return {"versions": versions, "commands": [], "date": "", "cells": {}}
    found: Results = json.loads(path.read_text(encoding="utf-8"))
    if found["versions"] != versions:
        raise UsageError(f"{path} was measured with {found['versions']}; here are {versions}: name another file")
    return found


def write_results(path: Path, results: Results) -> None:
    """Keep results, whole or not at all: one cell a line, in the order in which they were measured."""
    head = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in results.items() if name != "cells"]
    rows = [f"{json.dumps(key)}: {json.dumps(cell, allow_nan=False)}" for key, cell in results["cells"].items()]
    text = "{\n" + ",\n".join(head) + ',\n"cells": {\n' + ",\n".join(rows) + "\n}\n}\n"
    write_atomic(path, text.encode("utf-8"), overwrite=True)


def is_done(results: Results, key: str, samples: int) -> bool:
    """Whether a cell is there, over at least so many samples."""
    cell = results["cells"].get(key)
    return cell is not None and "failed" not in cell and cell["samples"] >= samples
