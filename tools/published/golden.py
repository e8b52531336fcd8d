"""The golden figures of splits: which new figures are worse, and the file after an update."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tools.published.splits import MODELS, is_no_worse

GOLDEN = Path(__file__).with_name("golden_splits.json")
TOLERANCE = 1e-3  # relative; other versions of torch trace slightly different graphs


def worse_rows(found: dict[str, Any], golden: dict[str, Any]) -> list[str]:
    """A sentence for each row that is worse than in the golden file, or is not in it."""
    known = {_key(row): row for row in golden["gaps"] + golden["asyncdiff"]}
    complaints = []
    for row in found["gaps"] + found["asyncdiff"]:
        before = known.get(_key(row))
        if before is None:
            complaints.append(f"{_name(row)} is not in the golden file")
        elif not is_no_worse(row.get("ours", row), before.get("ours", before), TOLERANCE):
            complaints.append(f"{_name(row)} got worse: {row.get('ours', row)}, was {before.get('ours', before)}")
    return complaints


def _key(row: dict[str, Any]) -> tuple[str, int, str]:
    return row["model"], row["devices"], row.get("mode", "asyncdiff")


def _name(row: dict[str, Any]) -> str:
    return "{} on {} devices ({})".format(*_key(row))


def merged(golden: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """The golden rows with those of ``found`` in place of the old ones, without solve times."""
    result: dict[str, Any] = {}
    for part in ("gaps", "asyncdiff"):
        rows = {_key(row): row for row in [*golden[part], *found[part]]}
        order = sorted(rows, key=lambda key: (MODELS.index(key[0]), key[1:]))
        result[part] = [{name: value for name, value in rows[key].items() if name != "seconds"} for key in order]
    return result
