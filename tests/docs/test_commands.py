"""Every command on a page is one that works.

Three ways, by what a command needs:

- parsed: this project's own commands (partition-model, run-plan, python -m tools.…) and torchrun's go through their
  real parsers, so that an option that is not there fails; whole runs would need GPUs, downloads or minutes.
- run: those of the quick start, one after the other, as they stand there.
- named: commands of other programs (pip, pytest, mkdocs, …), by what runs them elsewhere.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from tests.support.pages import PAGES, ROOT, Command, commands, reference_hook

OWN = ("partition-model", "run-plan")
COMMANDS = [command for page in PAGES for command in commands(page)]

# Commands of other programs, by their first words, and what runs them.
NAMED = {
    "python3 -m venv .venv": "a user's first command; .ci/run",
    ".venv/bin/pip install": "the same",
    ". .venv/bin/activate": "the same",
    ".venv/bin/python -m pytest": "README's test command, which .ci/run reads from there",
    "export": "a variable of the shell",
    "python -m pytest": "its options are tried below",
    "pip install": "extras are checked below",
    "ruff check .": ".ci/run",
    "ruff format --check .": ".ci/run",
    "mypy": ".ci/run",
    "mkdocs build --strict": "test_site",
    "bash .ci/run": "is what runs the tests",
}


class Parsed(BaseException):
    """The command's parser has taken its arguments; nothing after that is run."""


def parse(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a command's arguments to its own parser; SystemExit where that refuses them."""
    hook = reference_hook()
    original = argparse.ArgumentParser.parse_args

    def parse_args(parser: argparse.ArgumentParser, args: Sequence[str] | None = None) -> argparse.Namespace:
        parsed: argparse.Namespace = original(parser, args)  # type: ignore[arg-type]
        if hook.dispatches(parser):
            return parsed
        raise Parsed

    main, arguments = hook.main_of(words)
    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        try:
            code = main(arguments)
        except Parsed:
            return
    pytest.fail(f"{words} is refused with exit code {code}")


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c.words[0] in OWN or "tools." in " ".join(c.words[:3])], ids=str
)
def test_the_projects_own_commands_have_such_options(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [word.removeprefix(".venv/bin/") for word in command.words]
    parse(words, monkeypatch)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.words[0] == "torchrun"], ids=str)
def test_torchrun_starts_what_is_there(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    options = get_args_parser().parse_args(list(command.words[1:]))
    if options.module:
        parse(["python", "-m", options.training_script, *options.training_script_args], monkeypatch)
    else:
        assert (ROOT / options.training_script).is_file()


def test_every_other_command_is_named() -> None:
    known = {*OWN, "torchrun"}
    for command in COMMANDS:
        words = " ".join(command.words).replace(".venv/bin/partition-model", "partition-model")
        if words.split()[0] not in known and "-m tools." not in words:
            assert any(words.startswith(name) for name in NAMED), command


def test_an_unknown_option_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (["partition-model", "--modle", "svd"], ["python", "-m", "tools.measure", "links", "--cores", "2"]):
        with pytest.raises((SystemExit, pytest.fail.Exception)):
            parse(words, monkeypatch)


def test_the_sources_commands_are_found() -> None:
    assert Command("README.md", (".venv/bin/partition-model", "--model", "svd", "--devices", "4")) in COMMANDS
    assert len(COMMANDS) > 40


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.usefixtures("trace_once")
def test_the_quick_start_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    hook = reference_hook()
    wanted = [command.words for command in commands("docs/quick-start.md") if command.words[0] in OWN]
    assert len(wanted) == 6
    for words in wanted:
        main, arguments = hook.main_of([word.replace("tools/", f"{ROOT}/tools/") for word in words])
        assert main(arguments) == 0, words
    made = {name for name in os.listdir(tmp_path) if not name.startswith(".")}
    assert made == {"svd-4.plan.json", "unet-2.plan.json", "chain.plan.json", "circle.png", "chain.png", "exact.png"}
