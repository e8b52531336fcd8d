"""run_command: exit codes and sentences; what happens to streams is in tests/test_commands.py."""

from __future__ import annotations

import argparse
import signal
import sys

import pytest

from partitioner.command import CommandParser, run_command
from partitioner.errors import PlanError
from runtime.errors import ComponentFailed, EngineError


def failing(error: BaseException) -> str:
    raise error


def remote() -> ComponentFailed:
    error = ComponentFailed("index out of range", rank=1, component=0, step=3, node="words/embedding.0")
    error.remote_traceback = "Traceback (most recent call last):\n  the rank's own\n"
    return error


ENDS: list[tuple[BaseException, int, str]] = [
    (PlanError("no plan"), 3, "it: error: no plan\n"),
    (EngineError("no rank"), 5, "it: error: no rank\n"),
    (
        ValueError("bad\nand more"), 1,
        "it: error: ValueError: bad (this was not foreseen; --debug shows where it comes from)\n",
    ),
    (MemoryError(), 1, "it: error: MemoryError (this was not foreseen; --debug shows where it comes from)\n"),
    (KeyboardInterrupt(), 130, "it: interrupted\n"),
    (SystemExit(2), 2, ""),
    (SystemExit(), 0, ""),
    (remote(), 5, "it: error: rank 1 (component 0), step 3: index out of range at node words/embedding.0\n"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "code", "said"), ENDS)
def test_errors_end_in_a_sentence(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("it", lambda: failing(error), []) == code
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize(("number", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
@pytest.mark.parametrize(
    ("drawn", "before"), [("\r  1%", "\r  1%\n"), ("\r  1%\n", "\r  1%\n"), ("\r    \r", "\r    \r")]
)
def test_a_progress_bar_that_is_stopped_leaves_the_message_a_line_of_its_own(
    number: str, code: int, word: str, drawn: str, before: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> str:
        print(drawn, end="", file=sys.stderr)
        signal.raise_signal(getattr(signal, number))
        return "never"

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert run_command("it", work, []) == code
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
    assert capsys.readouterr() == ("", f"{before}it: {word}\n")


def test_with_debug_the_whole_is_shown_before_the_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for error, part in ((remote(), "  the rank's own\n"), (ValueError("bad"), "in failing\n")):
        run_command("it", lambda error=error: failing(error), ["--debug"])  # type: ignore[misc]
        _, err = capsys.readouterr()
        assert err.startswith("Traceback (most recent call last):\n")
        assert part in err
        assert err.splitlines()[-1].startswith("it: error: ")
        assert "--debug shows" not in err


def test_what_nobody_foresaw_is_raised_where_there_is_no_debug() -> None:
    with pytest.raises(ValueError, match="bad"):
        run_command("it", lambda: failing(ValueError("bad")))


def test_the_result_is_printed_and_streams_are_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    assert run_command("it", lambda: "a result", []) == 0
    assert run_command("it", lambda: 143, []) == 143
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr() == ("a result\n", "")


def test_a_wrong_argument_is_one_sentence_however_long(capsys: pytest.CaptureFixture[str]) -> None:
    parser = CommandParser(prog="it")
    parser.add_argument("--kind", choices=("a", "b"))
    assert run_command("it", lambda: str(parser.parse_args(["--kind", "c" * 9999])), []) == 2
    _, err = capsys.readouterr()
    assert err.startswith("it: error: argument --kind: invalid choice: 'ccc")
    assert "…" in err
    assert err.endswith("(choose from 'a', 'b'); see it --help\n")
    assert isinstance(parser.parse_args(["--debug"]), argparse.Namespace)


def test_what_a_terminal_would_obey_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("it", lambda: failing(PlanError("no \x1b[2Jé\0\u202e\ud800\nplan")), []) == 3
    assert run_command("it", lambda: "a\x1b[2J\nb é", []) == 0
    parser = CommandParser(prog="it")
    assert run_command("it", lambda: str(parser.parse_args(["\x07"])), []) == 2
    assert capsys.readouterr() == (
        "a\\x1b[2J\nb é\n",
        "it: error: no \\x1b[2Jé\\x00\\u202e\\ud800\nplan\nit: error: unrecognized arguments: \\x07; see it --help\n",
    )
