"""The host's time per call: what is printed, and that an engine's steady call takes few operators."""

from __future__ import annotations

import json

import pytest

from tools.measure import host


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "most"), [("async", 22), ("lookahead", 160), ("exact", 10)])
def test_a_steady_call_takes_few_operators(mode: str, most: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert host.main(["--mode", mode, "--generations", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["engine_operators"] < found["module_operators"] + most, found
    assert 0 < found["module_least_ms"] < found["engine_least_ms"] <= found["engine_median_ms"]
    assert 0 < found["commands_least_ms"] <= found["commands_median_ms"]
    assert set(found["exact_reasons"]) == {"exact mode" if mode == "exact" else "warm-up"}


def test_no_generation_is_refused() -> None:
    assert host.main(["--generations", "0"]) == 2
