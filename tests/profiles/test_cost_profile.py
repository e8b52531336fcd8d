"""Profiles survive a round trip byte for byte; anything else in such a file is refused in one sentence."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from profiles.cost_profile import MAX_BYTES, MAX_VALUES, CostProfile, SignatureCost, WholeCheck
from profiles.json_files import JsonFileError


def a_profile(**changes: Any) -> CostProfile:
    fields: dict[str, Any] = {
        "schema_version": 1,
        "device": "cpu",
        "device_name": "Abacus",
        "clock_mhz": 0.5,
        "versions": {"torch": "2.13.0"},
        "dtype": "float32",
        "mode": "eager",
        "date": "2025-11-20T12:00:00+00:00",
        "command": "python -m tools.measure profile --model x",
        "signatures": {"aten.add.Tensor(float32[2], 1)": SignatureCost(median_ms=0.25, iqr_ms=0.5, launch_ms=0)},
        "checks": (WholeCheck(model="x", fingerprint="ab", summed_ms=9, whole_ms=10, whole_iqr_ms=1, module_ms=None),),
    }
    return CostProfile(**(fields | changes))


GOLDEN = """{
 "checks": [
  {
   "fingerprint": "ab",
   "model": "x",
   "module_ms": null,
   "summed_ms": 9.0,
   "whole_iqr_ms": 1.0,
   "whole_ms": 10.0
  }
 ],
 "clock_mhz": 0.5,
 "command": "python -m tools.measure profile --model x",
 "date": "2025-11-20T12:00:00+00:00",
 "device": "cpu",
 "device_name": "Abacus",
 "dtype": "float32",
 "mode": "eager",
 "schema_version": 1,
 "signatures": {
  "aten.add.Tensor(float32[2], 1)": {
   "iqr_ms": 0.5,
   "launch_ms": 0.0,
   "median_ms": 0.25
  }
 },
 "versions": {
  "torch": "2.13.0"
 }
}
"""


def test_file_is_golden_and_loads(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    a_profile().save(path)
    assert path.read_text() == GOLDEN
    assert CostProfile.load(path) == a_profile()
    with pytest.raises(JsonFileError, match="exists already"):
        a_profile().save(path)
    a_profile(clock_mhz=None).save(path, overwrite=True)
    assert CostProfile.load(path).clock_mhz is None


def test_error_is_relative_to_the_whole() -> None:
    assert a_profile().checks[0].error == pytest.approx(-0.1)


def test_profile_is_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        a_profile().mode = "cuda_graph"


def changed(**changes: Any) -> bytes:
    return json.dumps(json.loads(GOLDEN) | changes).encode()


HOSTILE = {
    "no_object": (b"[]", "no cost profile"),
    "number": (b"1", "no cost profile"),
    "missing_all": (b"{}", "schema version"),
    "missing_one": (json.dumps({k: v for k, v in json.loads(GOLDEN).items() if k != "mode"}).encode(), "mode"),
    "future": (changed(schema_version=2), "schema version 2; this release reads version 1"),
    "version_of_wrong_type": (changed(schema_version="1"), "schema version 1"),
    "version_is_true": (changed(schema_version=True), "schema_version"),
    "extra_key": (changed(code="import os"), "code"),
    "unknown_mode": (changed(mode="fast"), "mode"),
    "unknown_device": (changed(device="../../etc/passwd"), "device"),
    "negative": (changed(signatures={"a": {"median_ms": -1, "iqr_ms": 0, "launch_ms": 0}}), "median_ms"),
    "text_number": (changed(signatures={"a": {"median_ms": "1", "iqr_ms": 0, "launch_ms": 0}}), "median_ms"),
    "boolean_number": (changed(signatures={"a": {"median_ms": True, "iqr_ms": 0, "launch_ms": 0}}), "median_ms"),
    "nan": (GOLDEN.replace("0.25", "NaN").encode(), "NaN"),
    "overflow": (GOLDEN.replace("0.25", "1e999").encode(), "finite"),
    "duplicate": (GOLDEN.replace('"mode"', '"dtype"').encode(), "twice"),
    "long_signature": (changed(signatures={"a" * 5000: {}}), "signatures"),
    "list_for_object": (changed(signatures=[]), "signatures"),
    "deep": (GOLDEN.replace("0.25", "[" * 1000 + "]" * 1000).encode(), "deeper"),
    "many_checks": (changed(checks=[{}] * (MAX_VALUES // 2 - 100)), "checks"),
    "many_signatures": (changed(signatures={str(i): 1 for i in range(MAX_VALUES - 100)}), "signatures"),
    "many_keys": (changed(**{str(i): 1 for i in range(MAX_VALUES - 100)}), "not permitted"),
    "too_many": (changed(checks=[1] * MAX_VALUES), "values"),
    "binary": (bytes(range(256)), "UTF-8"),
    "too_large": (b" " * (MAX_BYTES + 1), "at most"),
    "empty": (b"", "empty"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    content, expected = HOSTILE[name]
    path = tmp_path / "profile.json"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(JsonFileError, match=expected) as caught:
            CostProfile.load(path)
        assert tracemalloc.get_traced_memory()[1] < 100_000_000
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


@given(st.integers(0, len(GOLDEN) - 1), st.binary(min_size=1, max_size=4))
def test_damaged_file_gives_a_profile_or_the_documented_error(
    tmp_path_factory: pytest.TempPathFactory, position: int, damage: bytes
) -> None:
    path = tmp_path_factory.mktemp("profile") / "profile.json"
    content = GOLDEN.encode()
    path.write_bytes(content[:position] + damage + content[position + len(damage) :])
    try:
        profile = CostProfile.load(path)
    except JsonFileError as error:
        assert str(path) in str(error)  # noqa: PT017  (not every damage is one)
    else:
        profile.save(path, overwrite=True)
