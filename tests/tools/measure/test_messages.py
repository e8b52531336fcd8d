"""The cost of a message between ranks: what is printed of which transport, and wrong numbers of messages."""

from __future__ import annotations

import json

import pytest

from runtime.errors import EngineError
from tools.measure import joined, messages


@pytest.mark.processes
def test_the_command_prints_its_figures_of_each_transport_and_size(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert messages.main(["--messages", "10", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["messages"]
    assert [(row.pop("transport"), row.pop("size")) for row in rows] == [
        (transport, size) for transport in ("shared memory", "sockets", "threads") for size in messages.SIZES
    ]
    for row in rows:
        assert list(row) == ["send", "read", "there and back", "copy"]
        assert all(0 < value["least_us"] <= value["median_us"] for value in row.values()), row


@pytest.mark.parametrize("count", ["0", "15"])
def test_other_than_whole_tens_of_messages_are_refused(count: str) -> None:
    assert messages.main(["--messages", count]) == 2


def _fail(mailbox: object) -> None:
    raise SystemExit(1)


@pytest.mark.processes
@pytest.mark.parametrize("tcp", [False, True])
def test_a_rank_that_ends_is_noticed(tcp: bool) -> None:
    with pytest.raises(EngineError, match="a rank ended before it was measured"):
        joined.joined(_fail, messages.WIRES, tcp=tcp)
