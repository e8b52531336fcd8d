"""Plan files: golden bytes, and hostile ones. No torch needed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitioner.errors import PlanError
from partitioner.plan.plan import Plan
from tests.support.chain_plans import chain, document, make_plan
from tests.support.hostile_plans import GOOD, HOSTILE, LARGE

REPOSITORY = Path(__file__).parents[3]


def test_saving_and_loading_gives_the_same_plan_and_the_same_bytes(tmp_path: Path) -> None:
    plan = make_plan(chain(), branches=2)
    plan.save(tmp_path / "a.json")
    again = Plan.load(tmp_path / "a.json")
    assert again == plan
    assert again.digest == plan.digest
    assert (tmp_path / "a.json").read_bytes() == again.canonical
    assert list(again.placement) == [node.key for node in chain().latent_nodes]
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_golden_bytes() -> None:
    """The format is a promise: a change of these bytes needs a new schema version."""
    golden = Path(__file__).with_name("golden.plan.json")
    assert make_plan(chain(layers=2), components=2).canonical == golden.read_bytes()


def test_a_plan_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("mine")
    with pytest.raises(PlanError, match="exists"):
        make_plan(chain()).save(path)
    assert path.read_text() == "mine"
    make_plan(chain()).save(path, overwrite=True)
    assert Plan.load(path) == make_plan(chain())


def test_saving_into_a_missing_folder_is_a_plan_error(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot be written"):
        make_plan(chain()).save(tmp_path / "none" / "a.json")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_with_one_sentence(tmp_path: Path, name: str) -> None:
    data, expected = HOSTILE[name]
    path = tmp_path / "hostile.json"
    path.write_bytes(data)
    with pytest.raises(PlanError) as caught:
        Plan.load(path)
    message = str(caught.value)
    assert expected in message
    assert "\n" not in message
    assert len(message) < 600


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "device", "nul"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = {"folder": str(tmp_path), "device": "/dev/zero", "nul": "a\0b"}.get(kind, str(tmp_path / kind))
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(PlanError):
        Plan.load(path)


@pytest.mark.slow
def test_large_hostile_files_take_little_memory(tmp_path: Path) -> None:
    (tmp_path / "zeros.json").touch()
    os.truncate(tmp_path / "zeros.json", 1 << 30)
    for name, make in LARGE.items():
        (tmp_path / f"{name}.json").write_bytes(make())
    script = (
        "import pathlib, re, sys\n"
        "from partitioner.plan.plan import Plan\n"
        "from partitioner.errors import PlanError\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    try:\n        Plan.load(path)\n    except PlanError as error:\n        print(error)\n"
        "assert 'torch' not in sys.modules\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', pathlib.Path('/proc/self/status').read_text())[1])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) == len(LARGE) + 2
    assert int(lines[-1]) < 200_000, "peak memory in KB"


_json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, item in items for inner in _paths(item, (*path, key)))]


_PATHS = _paths(document())[1:]


@settings(max_examples=300)
@given(st.sampled_from(_PATHS), _json_values)
def test_fuzz_one_value(tmp_path_factory: pytest.TempPathFactory, path: tuple[Any, ...], value: Any) -> None:
    changed = json.loads(GOOD)
    target = changed
    for part in path[:-1]:
        target = target[part]
    target[path[-1]] = value
    file = tmp_path_factory.getbasetemp() / "fuzz.json"
    file.write_text(json.dumps(changed))
    _load_or_refuse(file)


@settings(max_examples=300)
@given(st.integers(0, len(GOOD)), st.integers(0, 60), st.binary(max_size=20))
def test_fuzz_bytes(tmp_path_factory: pytest.TempPathFactory, start: int, length: int, replacement: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzz.json"
    file.write_bytes(GOOD[:start] + replacement + GOOD[start + length :])
    _load_or_refuse(file)


def _load_or_refuse(path: Path) -> None:
    """What is loaded can be checked and placed, or is refused, too."""
    with contextlib.suppress(PlanError):
        plan = Plan.load(path)
        assert Plan.parse(json.loads(plan.canonical)) == plan
        plan.check(chain())
        plan.place(chain(rows=3))
