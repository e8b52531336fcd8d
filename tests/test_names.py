"""No two public classes or types share a name: one word for one thing, in all packages."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.support.sources import FILES, tree


def public_types(module: str) -> Iterator[str]:
    """Names of a module's public classes, and of the types that it gives a name."""
    for node in tree(module).body:
        name = ""
        if isinstance(node, ast.ClassDef):
            name = node.name
        elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
        if name[:1].isupper() and not name.isupper():
            yield name


def test_no_two_public_types_share_a_name() -> None:
    where: dict[str, list[str]] = {}
    for module in FILES:
        for name in public_types(module):
            where.setdefault(name, []).append(module)
    assert {name: modules for name, modules in where.items() if len(modules) > 1} == {}
