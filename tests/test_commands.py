"""How commands end: whatever they are given, and wherever they write to, one sentence and a documented exit code."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch  # noqa: F401 # in a process without it partition-model imports a diffusers that has no pipelines from then on

import partitioner.cli
import runtime.cli
from partitioner import limits
from tests.support.pages import reference_hook
from tests.support.sources import FILES, ROOT
from tools.command import command

GOLDEN = str(ROOT / "tests" / "partitioner" / "plan" / "golden.plan.json")
MAIN: dict[str, Callable[[Sequence[str]], int]] = {
    "partition-model": partitioner.cli.main,
    "run-plan": runtime.cli.main,
}
# enough to be a whole command line, with what comes after it
ARGUMENTS = {
    "partition-model": ["--model", "sd15", "--devices", "2", "--device", "cpu"],
    "run-plan": [GOLDEN, "--pipeline", "none/none", "--prompt", "a", "--output", "a.png"],
}
NO_NUMBERS = ["", "inf", "-inf", "nan", "1e30", str(10**30), "9" * 5000, "٣", "²", "1_0", "0x10", "two", "-1e30"]
# what is wrong by itself, and what the sentence says; not only numbers
WRONG = {
    "partition-model": [
        (["--devices", "0"], "expected 1 to 1024 devices"),
        (["--devices", "9" * 5000], "expected 1 to 1024 devices"),
        (["--devices", "٣"], "no device"),
        (["--devices", "h200,"], "no device ''"),
        (["--devices", "meta,meta"], "no device 'meta'"),
        (["--devices", ""], "no device ''"),
        (["--device", "meta"], "no device 'meta'"),
        (["--device", ""], "no device ''"),
        (["--dtype", ""], "argument --dtype: invalid choice"),
        (["--dtype", "float8"], "argument --dtype: invalid choice"),
        (["--scheduler", "DDIM"], "--scheduler 'DDIM' is no scheduler class of diffusers"),
        (["--scheduler", ""], "--scheduler '' is no scheduler class"),
        (["--mode", "sync"], "argument --mode: invalid choice"),
        (["--prefer", "9" * 5000], "argument --prefer: invalid choice"),
        (["--profile", "cuda:99"], "--profile cuda:99: there is no such device here"),
        (["--profile", "none.json"], "none.json cannot be read"),
        (["--profile", "a\0b"], "no path"),
        (["--quality", "none.json"], "none.json cannot be read"),
        (["--model", "9" * 5000], "no model named"),
        (["--model", "a\0b"], "no model named"),
        (["--output", "a\0b"], "cannot be written"),
        (["--output", "a" * 300], "cannot be written: File name too long"),
        (["--output", "/dev/full", "--force"], "is no file but a device"),
        (["--output", "a.json", "--save-profile", "a.json"], "--output and --save-profile name the same file"),
    ],
    "run-plan": [
        (["--devices", "meta,meta"], "--devices has 'meta'; expected cpu or cuda:N"),
        (["--devices", "cuda:99,cpu"], "--devices has 'cuda:99'"),
        (["--devices", ""], "--devices has ''"),
        (["--devices", "cpu,,cpu"], "--devices has ''"),
        (["--devices", "cpu,mps"], "--devices has 'mps'"),
        (["--devices", "cpu,cuda:٣"], "--devices has 'cuda:٣'"),
        (["--quality", "nan"], "argument --quality: quality is"),
        (["--quality", "-1"], "argument --quality: quality is"),
        (["--quality", "inf"], "argument --quality: quality is"),
        (["--quality", "best"], "argument --quality: quality is"),
        (["--transport", "pigeons"], "argument --transport: invalid choice"),
        (["--output", "a.png", "--trace", "none/a.json"], "there is no folder none"),
        (["--output", "a.gif", "--trace", "a.gif"], "--output and --trace name the same file"),
        (["--output", "/dev/null", "--force"], "expected one of .png"),
        (["--output", "a\0b.png"], "cannot be written"),
        (["--output", "a.png", "--image", "a\0b"], "is no file"),
        (["--prompt", "a \udcff"], "argument --prompt: expected a text"),
        (["--negative-prompt", "\udc80"], "argument --negative-prompt: expected a text"),
        (["--pipeline", "9" * 5000], "is neither a folder nor a file nor a hub id"),
    ],
}


class Unwritable(io.StringIO):
    """A stream that takes nothing."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self._error = error

    def write(self, text: str) -> int:
        raise self._error


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; in it nothing may be left."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ended(capsys: pytest.CaptureFixture[str], command: str, arguments: Sequence[str]) -> tuple[int, str]:
    """The exit code and the sentence, of a command that prints nothing else."""
    code = MAIN[command]([*ARGUMENTS[command], *arguments])
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    (sentence,) = [line for line in err.splitlines() if line.startswith(f"{command}: ")]
    assert err.splitlines()[-1] == sentence
    assert sentence.startswith(f"{command}: error: ")
    assert len(sentence) < 1100
    return code, sentence


def numeric(command: str) -> list[argparse.Action]:
    """The options of a command whose type comes from partitioner.limits, and is no text's."""
    parser = reference_hook().parser_of([command])
    ours = [action for action in parser._actions if getattr(action.type, "__module__", "").endswith("limits")]
    return [action for action in ours if action.type is not limits.text]


@pytest.mark.parametrize("command", MAIN)
def test_every_number_has_a_range_and_is_refused_by_name(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = reference_hook().parser_of([command])
    assert not [action.dest for action in parser._actions if action.type in (int, float)]
    options = numeric(command)
    assert len(options) >= 7
    for action in options:
        for text in NO_NUMBERS:
            code, sentence = ended(capsys, command, [f"{action.option_strings[0]}={text}"])
            assert code == 2
            assert f"argument {action.option_strings[0]}: expected a " in sentence
            assert " from " in sentence


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [pytest.param(command, *case, id=f"{command}-{n}") for command in MAIN for n, case in enumerate(WRONG[command])],
)
def test_what_is_wrong_by_itself_is_one_sentence(
    command: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    code, sentence = ended(capsys, command, arguments)
    assert code == 2
    assert said in sentence
    assert list(folder.iterdir()) == []


# ---- streams


def test_where_nothing_can_be_written_to(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process; a full disk, and a reader who has gone."""
    full, gone = OSError(28, "No space left on device"), BrokenPipeError(32, "Broken pipe")
    for out, code, said in ((full, 2, "cannot be written to stdout: No space left on device"), (gone, 0, "")):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", Unwritable(out))
            assert MAIN["partition-model"](["models"]) == code
        err = capsys.readouterr().err
        assert said in err
        assert len(err.splitlines()) == bool(said)
    for error in (full, gone):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", Unwritable(error))
            assert MAIN["partition-model"]([*ARGUMENTS["partition-model"], "--steps", "0"]) == 2
        assert capsys.readouterr().out == ""


TOOLS = [
    module
    for module, path in FILES.items()
    if module.startswith("tools.") and 'if __name__ == "__main__":' in (text := path.read_text()) and "argparse" in text
]


@pytest.mark.parametrize("module", TOOLS)
def test_tools_end_like_the_commands(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main: Any = importlib.import_module(f"{module}.__main__" if FILES[module].stem == "__init__" else module).main
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Unwritable(OSError(28, "No space left on device")))
        assert main(["--help"]) == 2
    *_, sentence = capsys.readouterr().err.splitlines()  # before it, what a library says when it is imported
    assert sentence.endswith("error: the result cannot be written to stdout: No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Unwritable(BrokenPipeError(32, "Broken pipe")))
        assert main(["--help"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["--no-such-option"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err


# (what the shell does with the streams, exit code, lines that are left on stderr)
SHELL = [
    ("models > /dev/full", 2, 1),
    ("--help > /dev/full", 2, 1),
    ("models | head -0; exit ${PIPESTATUS[0]}", 0, 0),
    ("models 2>&1 | head -0; exit ${PIPESTATUS[0]}", 0, 0),
    ("models >&-", 0, 0),
    ("models >&- 2>&- <&-", 0, 0),
    ("--model sd15 --devices 0 2> /dev/full", 2, 0),
    ("--model sd15 --devices 0 2>&-", 2, 0),
    ("--model sd15 --devices 0 > /dev/full", 2, 1),
    ("inspect none.json > /dev/full", 3, 1),
]


@pytest.mark.parametrize(("line", "code", "lines"), SHELL)
def test_a_process_whose_streams_are_full_or_closed(line: str, code: int, lines: int) -> None:
    command = f"{sys.executable} -m partitioner.cli {line}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60
    )
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == lines, done.stderr
    assert done.stdout == ""


@pytest.mark.slow
def test_names_and_texts_that_a_stream_cannot_show_are_shown_otherwise() -> None:
    """An encoding without their characters, and a file name that is no text."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    for arguments, code in ((["inspect", GOLDEN], 0), (["inspect", b"\xff\xfe.json"], 3)):
        done = subprocess.run(
            [sys.executable, "-m", "partitioner.cli", *arguments], capture_output=True, env=environment, timeout=60
        )
        assert done.returncode == code, done.stderr
        assert b"Traceback" not in done.stderr


def test_a_tool_ends_at_sigterm_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    @command("tools.example")
    def main() -> int:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        return 0

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert main() == 143
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert capsys.readouterr().err == "tools.example: terminated\n"
