"""Fills the command reference from the commands' own parsers. A hook of mkdocs (mkdocs.yml names it).

A line `<!-- command: partition-model inspect -->` in reference/cli.md becomes the usage and options of that command.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[2]))

INSTALLED = {"partition-model": "partitioner.cli", "run-plan": "runtime.cli"}
PAGE = "reference/cli.md"
MARK = re.compile(r"^<!-- command: (.+?) -->$", re.MULTILINE)


class ParserFound(BaseException):
    """Raised in place of parsing, through whatever the command would catch."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__(parser.prog)
        self.parser = parser


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by mkdocs with each page's text; returns it with the references filled in."""
    if page.file.src_uri != PAGE:
        return markdown
    return MARK.sub(lambda mark: "\n".join(reference(parser_of(mark[1].split()))), markdown)


def main_of(words: Sequence[str]) -> tuple[Callable[[Sequence[str]], Any], list[str]]:
    """The ``main`` function of a command line and the arguments that it gets.

    words: such as ["run-plan", "--help"] or ["python", "-m", "tools.bench", "--json"].
    """
    if words[0] in INSTALLED:
        module, arguments = INSTALLED[words[0]], words[1:]
    elif list(words[:2]) == ["python", "-m"]:
        module, arguments = words[2], words[3:]
    else:
        raise ValueError(f"{' '.join(words)} is none of this project's commands")
    if _is_package(module):
        module = f"{module}.__main__"
    return importlib.import_module(module).main, list(arguments)


def parser_of(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser that a command gives its arguments to; words name its subcommand, too, and no option."""
    parse = argparse.ArgumentParser.parse_args

    def found(parser: argparse.ArgumentParser, args: Sequence[str] | None = None) -> argparse.Namespace:
        if dispatches(parser):
            return parse(parser, args)
        raise ParserFound(parser)

    main, arguments = main_of(words)
    with mock.patch.object(argparse.ArgumentParser, "parse_args", found):
        try:
            main(arguments)
        except ParserFound as caught:
            return caught.parser
    raise ValueError(f"{' '.join(words)} parses no arguments with argparse")


def dispatches(parser: argparse.ArgumentParser) -> bool:
    """Whether a parser hands what follows its first argument to another command's parser."""
    return any(action.nargs == argparse.REMAINDER for action in parser._actions)


def reference(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Lines of Markdown: what the command does, its usage, and a table of the options of each group."""
    with mock.patch.dict(os.environ, {"COLUMNS": "100"}):
        usage = parser.format_usage().removeprefix("usage: ").rstrip()
    yield from (parser.description or "", "", "```text", usage, "```", "")
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
        if not actions:
            continue
        title = (group.title or "options").capitalize()
        yield from (f"**{title}**", "", "| | |", "|---|---|")
        formatter = parser._get_formatter()
        for action in actions:
            text = formatter._expand_help(action) if action.help else ""
            yield f"| `{_form(action)}` | {_cell(text)} |"  # a bar inside backticks is no border
        yield ""


def _is_package(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.submodule_search_locations is not None


def _form(action: argparse.Action) -> str:
    """As in the usage: "--devices N|LIST"."""
    choices = ",".join(map(str, action.choices)) if action.choices else None
    value = action.metavar if isinstance(action.metavar, str) else choices or action.dest.upper()
    if not action.option_strings:
        return value
    return action.option_strings[-1] + (f" {value}" if action.nargs != 0 else "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
