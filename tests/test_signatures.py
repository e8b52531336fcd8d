"""How public functions are called."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.support.sources import FILES, tree

MOST = 6  # arguments by position; more are keyword-only, or values of a frozen dataclass

Function = ast.FunctionDef | ast.AsyncFunctionDef


def public_functions(node: ast.AST, method: bool = False) -> Iterator[tuple[str, int]]:
    """Name and number of arguments that may be given by position, self and cls aside, of a module's or a class's."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from ((f"{child.name}.{name}", count) for name, count in public_functions(child, method=True))
        elif isinstance(child, Function) and (child.name == "__init__" or not child.name.startswith("_")):
            static = any(isinstance(mark, ast.Name) and mark.id == "staticmethod" for mark in child.decorator_list)
            count = len(child.args.posonlyargs) + len(child.args.args)
            yield child.name, count - (method and not static)


@pytest.mark.parametrize("module", FILES)
def test_no_public_function_takes_many_arguments_by_position(module: str) -> None:
    longer = {name for name, count in public_functions(tree(module)) if count > MOST}
    assert not longer, f"more than {MOST}: group them in a value, or make some keyword-only"
