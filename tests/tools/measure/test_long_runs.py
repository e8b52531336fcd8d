"""long-runs: what an engine holds does not grow, with more shapes and contexts than it keeps. No memory is asserted."""

from __future__ import annotations

import json

import pytest

from tools.measure import long_runs
from tools.measure.long_runs import Held, growth

SLOW = pytest.mark.slow
pytestmark = pytest.mark.usefixtures("trace_once")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param("--transport emulation --shapes 3 --contexts 40 --calls 120", id="one at a time", marks=SLOW),
        pytest.param(
            "--transport threads --mode lookahead --ranks 3 --shapes 40 --contexts 80 --calls 160 --at-once 3 --record",
            id="threads",
            marks=SLOW,
        ),
        pytest.param(
            "--transport processes --shapes 40 --contexts 80 --calls 200 --at-once 40",
            id="at once",
            marks=[SLOW, pytest.mark.processes],
        ),
        pytest.param(
            "--transport processes --shapes 3 --contexts 80 --calls 100 --restarts 19",
            id="restarts",
            marks=[SLOW, pytest.mark.processes],
        ),
    ],
)
def test_nothing_grows_but_what_is_kept(options: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = long_runs.main([*options.split(), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert code == (1 if document["grown"] else 0)
    rows = [Held(**row) for row in document["rows"]]
    assert len(rows) == 20
    assert all(row.graphs <= 32 and row.trajectories <= 2 * 32 for row in rows)
    settled = rows[len(rows) // 2]
    for row in rows[len(rows) // 2 :]:
        assert (row.descriptors, row.threads) == (settled.descriptors, settled.threads)
        assert row.shared <= 2 * 132, "of 32 graphs, four regions each, and the boards"


def test_what_has_grown_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    flat = [Held(call, 500.0 + call / 10, 15, 5, 132, 32, 2) for call in range(20)]
    assert growth(flat) == {}
    rows = [Held(call, 500.0 + 10 * call, 15 + call, 5, 132, 32, 2) for call in range(20)]
    assert growth(rows) == {"memory_mib": (550.0, 690.0), "descriptors": (20.0, 34.0)}
    assert long_runs.table(rows).splitlines()[0].split() == list(Held.__annotations__)


def test_what_makes_no_sense_is_refused() -> None:
    for options in (["--calls", "5"], ["--at-once", "0"]):
        with pytest.raises(SystemExit) as caught:
            long_runs.main(options)
        assert caught.value.code == 2
