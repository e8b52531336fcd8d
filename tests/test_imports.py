"""Who may import whom: read from the sources, so that nothing has to be imported to be checked."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("profiles", "partitioner", "runtime", "tools")  # each may import itself and those before it
HEAVY = {"torch", "diffusers", "transformers", "accelerate", "huggingface_hub", "safetensors"}

# The only modules of profiles and partitioner that touch torch or diffusers at all.
TOUCH_TORCH = {
    "partitioner.costs.components",
    "partitioner.costs.device_description",
    "partitioner.costs.measure",
    "partitioner.costs.model",
    "partitioner.costs.operator_calls",
    "partitioner.costs.random_tensors",
    "partitioner.costs.timing",
    "partitioner.graph.arguments",
    "partitioner.graph.export",
    "partitioner.graph.operators",
    "partitioner.graph.reader",
    "partitioner.graph.torch_private",
    "partitioner.models.build",
    "partitioner.models.source",
    "partitioner.models.spec",
    "partitioner.process",
    "partitioner.staleness.measured",
}
# Those of them that cannot be imported without it.
NEED_TORCH = TOUCH_TORCH - {
    "partitioner.costs.model",
    "partitioner.models.build",
    "partitioner.models.source",
    "partitioner.models.spec",
    "partitioner.process",
}

PRIVATE_NAMES = {"partitioner.graph.torch_private"}
DISTRIBUTED = {"runtime.transport.rendezvous", "partitioner.graph.torch_private", "tools.bench.policy_ranks"}


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {_module_name(path): path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))}


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def imported(node: ast.AST) -> Iterator[str]:
    """Dotted names that an import statement may load: "a.b" and "a.b.c" for ``from a.b import c``."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        yield node.module or ""
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_anywhere(module: str) -> set[str]:
    """What a module imports when all of it has run, functions included, annotations aside."""
    return {name for node in _running(_tree(module), functions=True) for name in imported(node)}


def imports_at_import(module: str) -> set[str]:
    """What importing the module imports itself."""
    return {name for node in _running(_tree(module), functions=False) for name in imported(node)}


def _running(node: ast.AST, functions: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) and not functions:
            continue
        yield child
        yield from _running(child, functions)


def dotted_names(module: str) -> set[str]:
    """Every dotted name in a module's code, and every name that it imports."""
    names = {name for node in ast.walk(_tree(module)) for name in imported(node)}
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            if all(part.isidentifier() for part in text.split(".")):
                names.add(text)
    return names


def heavy(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] in HEAVY}


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_one_way(layer: str) -> None:
    later = set(LAYERS[LAYERS.index(layer) + 1 :])
    for module, path in FILES.items():
        if module.split(".")[0] == layer:
            names = {name for node in ast.walk(_tree(module)) for name in imported(node)}
            assert not {name for name in names if name.split(".")[0] in later}, path


def test_only_the_named_modules_touch_torch() -> None:
    touching = {
        module
        for module in FILES
        if module.split(".")[0] in ("profiles", "partitioner") and heavy(imports_anywhere(module))
    }
    assert touching <= TOUCH_TORCH


@pytest.mark.parametrize("module", [m for m in FILES if m.split(".")[0] in ("profiles", "partitioner")])
def test_importing_a_module_imports_torch_only_where_it_is_needed(module: str) -> None:
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        assert module in NEED_TORCH or not heavy(imports_at_import(current)), f"{module} imports torch by {current}"
        waiting += [name for name in imports_at_import(current) if name in FILES]


@pytest.mark.parametrize("module", FILES)
def test_private_names_of_torch_stay_in_one_place(module: str) -> None:
    private = {
        name
        for name in dotted_names(module)
        if name.startswith("torch.") and any(part.startswith("_") and part[:2] != "__" for part in name.split("."))
    }
    assert not private or module in PRIVATE_NAMES


@pytest.mark.parametrize("module", FILES)
def test_only_the_named_modules_touch_torch_distributed(module: str) -> None:
    names = {name for name in dotted_names(module) if name.startswith("torch.distributed")}
    assert not names or module in DISTRIBUTED


def test_every_package_has_the_guard() -> None:
    for layer in LAYERS:
        assert 'parents[1] / "profiles" / "import_guard.py"' in FILES[layer].read_text(encoding="utf-8")
