"""Who may import whom: read from the sources, so that nothing has to be imported to be checked."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import networkx
import pytest

from tests.support.sources import FILES, PACKAGES, imported, modules_imported, tree

# Inside a package, each room (a module or sub-package) may import the rooms in the rows above its own, and none beside
# it in the same row. The package itself, the names that users import, comes last.
ROOMS = {
    "profiles": """
        import_guard collector
        json_files
        records
        cost_profile device_sheets quality_profile
        measured_figure
    """,
    "partitioner": """
        _version errors process tables
        command limits writable
        graph library search
        fleet models staleness
        costs plan
        simulator
        baselines
        planning
        branch_text
        model_list report quality_text cli_options
        report_text
        cli
    """,
    "runtime": """
        errors
        options turns
        devices
        transport
        worker
        ranks
        stats torchrun
        driver
        engine_calls engine_thrown_away
        engine
        denoiser second_denoisers parts
        moved_denoisers offloaded_parts live_plans device_choice
        pipeline
        memory_bound
        loading
        generation output_file
        cli_options
        cli
    """,
}
ROW = {
    f"{package}.{room}": row
    for package, rows in ROOMS.items()
    for row, rooms in enumerate(rows.strip().splitlines())
    for room in rooms.split()
}

HEAVY = {"torch", "diffusers", "transformers", "accelerate", "huggingface_hub", "safetensors"}

# Where private names of torch stay.
PRIVATE_NAMES = {module for module in FILES if module.startswith("partitioner.graph.torch_private.")}
# The only modules of profiles and partitioner that touch torch or diffusers at all.
TOUCH_TORCH = PRIVATE_NAMES | {
    "partitioner.costs.components",
    "partitioner.costs.device_description",
    "partitioner.costs.measure",
    "partitioner.costs.model",
    "partitioner.costs.operator_calls",
    "partitioner.costs.random_tensors",
    "partitioner.costs.timing",
    "partitioner.graph.arguments",
    "partitioner.graph.belonging",
    "partitioner.graph.constants",
    "partitioner.graph.direct_trace",
    "partitioner.graph.export",
    "partitioner.graph.fakes",
    "partitioner.graph.module_state",
    "partitioner.graph.operators",
    "partitioner.graph.own_attention",
    "partitioner.graph.container_group",
    "partitioner.graph.module_form",
    "partitioner.graph.reachable",
    "partitioner.graph.reader",
    "partitioner.graph.regions",
    "partitioner.graph.stateless",
    "partitioner.graph.storages",
    "partitioner.graph.tensor_digest",
    "partitioner.graph.tensor_meta",
    "partitioner.graph.tensor_values",
    "partitioner.graph.trace_failure",
    "partitioner.models.build",
    "partitioner.models.guess_roles",
    "partitioner.models.inputs",
    "partitioner.models.lean_import",
    "partitioner.models.parameter_bound",
    "partitioner.models.pipeline_runs",
    "partitioner.models.recorded",
    "partitioner.models.sampler_answers",
    "partitioner.models.sampler_copy",
    "partitioner.models.sampler_probe",
    "partitioner.models.samplers",
    "partitioner.models.seen_calls",
    "partitioner.models.source",
    "partitioner.models.spec",
    "partitioner.models.stand_ins",
    "partitioner.models.unweighted",
    "partitioner.process",
    "partitioner.staleness.measured",
}
# Those of them that cannot be imported without it.
NEED_TORCH = TOUCH_TORCH - {
    "partitioner.costs.model",
    "partitioner.models.build",
    "partitioner.models.inputs",
    "partitioner.models.lean_import",
    "partitioner.models.parameter_bound",
    "partitioner.models.source",
    "partitioner.models.spec",
    "partitioner.models.unweighted",
    "partitioner.process",
}

DISTRIBUTED = {"runtime.ranks.torchrun_store", "partitioner.graph.torch_private.gloo", "tools.bench.policy_ranks"}


def imports_anywhere(module: str) -> set[str]:
    """What a module imports when all of it has run, functions included, annotations aside."""
    return {name for node in _running(tree(module), functions=True) for name in imported(node)}


def imports_at_import(module: str) -> set[str]:
    """What importing the module imports itself."""
    return {name for node in _running(tree(module), functions=False) for name in imported(node)}


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
    names = {name for node in ast.walk(tree(module)) for name in imported(node)}
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            if all(part.isidentifier() for part in text.split(".")):
                names.add(text)
    return names


def heavy(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] in HEAVY}


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_one_way(package: str) -> None:
    later = set(PACKAGES[PACKAGES.index(package) + 1 :])
    for module, path in FILES.items():
        if module.split(".")[0] == package:
            names = {name for node in ast.walk(tree(module)) for name in imported(node)}
            assert not {name for name in names if name.split(".")[0] in later}, path


def room(module: str) -> str:
    """The package's part that a module belongs to: "a.b" for "a.b.c"; the package itself is its own."""
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("package", ROOMS)
def test_every_room_has_a_row(package: str) -> None:
    rooms = {room(module) for module in FILES if module.startswith(f"{package}.")}
    assert rooms == {name for name in ROW if name.startswith(f"{package}.")}, "add it to ROOMS or take it out"


@pytest.mark.parametrize("module", [module for module in FILES if module.split(".")[0] in ROOMS and "." in module])
def test_rooms_import_those_above_them(module: str) -> None:
    inside = {name for name in modules_imported(module) if name.split(".")[0] == module.split(".")[0]}
    others = {name for name in inside if room(name) != room(module)}
    back = {name for name in others if ROW.get(room(name), len(ROW)) >= ROW[room(module)]}
    assert not back, f"{module} may not import {', '.join(sorted(back))}"


def test_no_modules_import_one_another() -> None:
    """Not even in functions or for annotations."""
    arrows = networkx.DiGraph((module, name) for module in FILES for name in modules_imported(module))
    assert [part for part in networkx.strongly_connected_components(arrows) if len(part) > 1] == []


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
    for package in PACKAGES:
        assert 'parents[1] / "profiles" / "import_guard.py"' in FILES[package].read_text(encoding="utf-8")
