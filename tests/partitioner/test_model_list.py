"""What is listed of every name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from partitioner import model_list
from partitioner.model_list import describe_models, models_text
from partitioner.models import checked
from partitioner.models.built_in import BUILT_IN
from partitioner.models.checked import CHECKED_FILE, CheckedName, checked_names
from partitioner.models.registry import ARCHITECTURES, Architecture

FINE = CheckedName(4, 31.6, 40.0, 2_150_000_000, 20.0, 4000, None, "torch 2.13, diffusers 0.42.1")


def test_every_built_in_name_has_a_row() -> None:
    rows = {row["name"]: row for row in describe_models()["models"]}
    assert set(BUILT_IN) <= set(rows)
    assert rows["flux2"]["class_name"] == "Flux2Transformer2DModel"
    assert (rows["flux2"]["parameters"], rows["flux2"]["tokens"]) == (32223281152, 4096)
    styles = {"sdxl": "batch", "flux": "embedded", "flux2-klein-9b": "two-calls", "z-image": "batch", "ltx2": "batch"}
    assert {name: rows[name]["guidance_style"] for name in styles} == styles
    assert "one of its two denoisers" in rows["wan22-t2v-a14b"]["note"]
    json.dumps(rows, allow_nan=False)


def test_the_table_says_what_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = CheckedName(4, 5.0, 5.0, 10**9, None, None, "TraceError: no", "torch 2.13, diffusers 0.42.1")
    monkeypatch.setattr(model_list, "checked_names", lambda: {"flux2": FINE, "mochi": failed})
    mine = Architecture(lambda request: {}, dict, "none", False, "float32")  # type: ignore[arg-type]
    monkeypatch.setitem(ARCHITECTURES, "mine", mine)
    lines = {line.split()[0]: line for line in models_text(describe_models()).splitlines() if line}
    words = ["32.22", "B", "4,096", "50", "FlowMatchEulerDiscrete", "embedded", "4"]
    assert lines["flux2"].split()[1:8] == words
    assert lines["flux2"].endswith("planned for 4 devices in 40 s of CPU time and 2.1 GB")
    assert lines["mochi"].endswith("fails: TraceError: no")
    assert lines["sdxl"].endswith("not yet")
    assert "mine" in lines


def test_what_was_checked_is_read_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(checked_names()) <= set(BUILT_IN), CHECKED_FILE
    monkeypatch.setattr(checked, "CHECKED_FILE", tmp_path / "checked.json")
    assert checked_names() == {}
    (tmp_path / "checked.json").write_text(json.dumps({"flux2": FINE.as_json()}))
    assert checked_names() == {"flux2": FINE}
