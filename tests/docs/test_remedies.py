"""What an error message tells a user to type is there: every option that a text of the sources names."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from tests.support.pages import reference_hook
from tests.support.sources import FILES, tree

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
OWN = ["partition-model", "partition-model inspect", "run-plan"]


@cache
def texts(module: str) -> list[tuple[int, str]]:
    """The string literals of a module that name options, parts of f-strings among them, without its docstrings."""
    if not OPTION.search(FILES[module].read_text()):
        return []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = list(ast.walk(tree(module)))
    docstrings = {
        id(node.body[0].value)
        for node in nodes
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    return [
        (node.lineno, node.value)
        for node in nodes
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in docstrings
        and OPTION.search(node.value)
    ]


@cache
def options_of(command: str) -> frozenset[str]:
    """The options that a command takes."""
    parser = reference_hook().parser_of(command.split())
    return frozenset(option for action in parser._actions for option in action.option_strings)


def known_to(module: str) -> frozenset[str]:
    """The options that a message of a module may name."""
    known = frozenset[str]().union(*map(options_of, OWN))
    if module == "runtime.ranks.torchrun_driver":
        known |= {option for action in get_args_parser()._actions for option in action.option_strings}
    if any("python -m tools.quality" in text for _, text in texts(module)):
        known |= options_of("python -m tools.quality")
    if module.startswith("tools."):
        known |= {text for name in FILES if name.startswith("tools.") for _, text in texts(name) if OPTION.match(text)}
        known |= {"--color", "--durations", "--tb", "--only-binary"}  # pytest's and pip's
        known |= {"--create-dirs", "--local-dir"}  # curl's and hf's
    return known


@pytest.mark.parametrize("module", [name for name in FILES if texts(name)])
def test_every_option_in_a_text_is_there(module: str) -> None:
    known = known_to(module)
    named = {(Path(FILES[module]).name, line, o) for line, text in texts(module) for o in OPTION.findall(text)}
    assert {where for where in named if where[2] not in known} == set()
