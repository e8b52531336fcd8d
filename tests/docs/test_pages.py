"""What pages say of the repository is so: links, files, modules, code."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import json
import re
from pathlib import Path

import pytest

from partitioner.fleet import parse_fleet
from runtime import errors
from tests.support.pages import DOCS, PAGES, ROOT, blocks, text_of

SOURCES = r"`((?:partitioner|runtime|profiles|tools|tests|examples|docs)/[\w./-]*)`"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if not target.startswith(("http://", "https://", "#")):
            assert (PAGES[page].parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_are_there(page: str) -> None:
    for name in re.findall(SOURCES, text_of(page)):
        assert (ROOT / name).exists(), name


def test_every_page_is_in_the_sites_navigation_and_on_the_overview() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    overview = text_of("docs/index.md")
    for page in PAGES:
        if page.startswith("docs/") and page != "docs/index.md":
            name = page.removeprefix("docs/")
            assert f": {name}\n" in navigation, name
            assert f"({name})" in overview, name


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_compile_and_import_what_is_there(page: str) -> None:
    for block in blocks(page, "python"):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("partitioner", "runtime"):
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


RUNNABLE = [(page, number) for page in PAGES for number in range(text_of(page).count("<!-- runs -->\n```python"))]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "number"), RUNNABLE)
def test_python_blocks_that_need_nothing_run(page: str, number: int, tmp_path: Path) -> None:
    block = text_of(page).split("<!-- runs -->\n```python\n")[number + 1].split("```\n")[0]
    with contextlib.chdir(tmp_path):
        exec(block.replace("tools/trained", f"{ROOT}/tools/trained"), {})


@pytest.mark.parametrize("package", ["partitioner", "partitioner.models", "runtime"])
def test_every_public_name_is_in_the_reference(package: str) -> None:
    named = re.findall(r"^::: ([\w.]+)$", text_of("docs/reference/python.md"), re.MULTILINE)
    assert {f"{package}.{name}" for name in importlib.import_module(package).__all__} <= set(named)


def test_every_error_of_a_run_is_in_the_reference() -> None:
    (members,) = re.findall(
        r"^::: runtime\.errors\n.*?members: \[(.*?)\]", text_of("docs/reference/python.md"), re.M | re.S
    )
    kinds = {
        name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.EngineError)
    }
    assert set(members.split(", ")) == kinds - {"EngineError"}


def test_the_described_fleet_is_read(tmp_path: Path) -> None:
    (text,) = blocks("docs/guides/plan.md", "json")
    file = tmp_path / "fleet.json"
    file.write_text(text)
    assert [device.name for device in parse_fleet(str(file), "h200")] == ["h200", "h200", "b200"]
    assert json.loads(text)


def test_the_readme_is_short() -> None:
    assert len(text_of("README.md").splitlines()) <= 135


def test_the_picture_is_the_scripts() -> None:
    spec = importlib.util.spec_from_file_location("draw_overview", DOCS / "draw_overview.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "draw_overview", module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        drawn = module.overview()
    assert drawn == (DOCS / "overview.svg").read_text(encoding="utf-8"), "run: python docs/draw_overview.py"
