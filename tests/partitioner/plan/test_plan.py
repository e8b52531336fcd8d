"""Plan files: golden bytes, published schema, hostile files, and placement on other graphs. No torch needed."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitioner.errors import PlanError
from partitioner.graph.ir import TracedGraph
from partitioner.graph.nodes import Input, Node, Parameter, Ref, Role, TensorMeta
from partitioner.plan.plan import Plan
from partitioner.plan.plan_files import MAX_PLAN_BYTES
from partitioner.plan.ranks import rank_of, seat_of
from partitioner.plan.records import CostSource, DriverModule, Predicted, PredictedComponent

REPOSITORY = Path(__file__).parents[3]
COMPONENT = PredictedComponent(
    compute_ms=1.5, macs=10, parameters=16, parameter_bytes=32, memory_bytes=64, receive_bytes=128, send_bytes=128
)


def chain(layers: int = 6, rows: int = 2, extra: int = 0, model: str = "toy", width: int = 4) -> TracedGraph:
    """sample -> linear, gelu -> linear, gelu ...; extra: how many layers have two more nodes below (as a LoRA adds)."""

    def meta(*shape: int) -> TensorMeta:
        return TensorMeta(shape, (*(width for _ in shape[1:]), 1), "float16")

    nodes: list[Node] = []
    parameters = []

    def add(name: str, module: str, target: str, *args: str) -> str:
        key = f"{module}/{target.split('.')[1]}.0"
        refs = tuple(map(Ref, args))
        nodes.append(Node(name, key, target, refs, (), module, Role.LATENT, (meta(rows, width),)))
        return name

    value = "sample"
    for layer in range(layers):
        weight = f"w{layer}"
        parameters.append(Parameter(weight, f"blocks.{layer}.proj.weight", meta(width, width)))
        wrapped = layer < extra
        linear_module = f"blocks.{layer}.proj" + (".base_layer" if wrapped else "")
        out = add(f"linear{layer}", linear_module, "aten.linear.default", value, weight)
        if wrapped:
            parameters.append(Parameter(f"a{layer}", f"blocks.{layer}.proj.lora_A.weight", meta(width, width)))
            low = add(f"lora{layer}", f"blocks.{layer}.proj.lora_A", "aten.linear.default", value, f"a{layer}")
            out = add(f"sum{layer}", f"blocks.{layer}.proj", "aten.add.Tensor", out, low)
        value = add(f"gelu{layer}", f"blocks.{layer}", "aten.gelu.default", out)
    return TracedGraph(
        model=model,
        class_name="Chain",
        inputs=(Input("sample", meta(rows, width), Role.LATENT),),
        literals=(("return_dict", False),),
        parameters=tuple(parameters),
        nodes=tuple(nodes),
        results=(Ref(value),),
    )


def make_plan(
    graph: TracedGraph, components: int = 3, branches: int = 1, mode: str = "lookahead", **changes: Any
) -> Plan:
    latent = graph.latent_nodes
    placed = {node.name: position * components // len(latent) for position, node in enumerate(latent)}
    ranks = components * branches
    predicted = Predicted(
        sequential_ms=4.5, step_ms=1.5, exact_step_ms=4.5, lower_bound_ms=1.5, gap=0.0, speedup_step=3.0,
        bytes_per_step=256,
        staleness=0.0, macs=30, components=(COMPONENT,) * ranks,
    )  # fmt: skip
    arguments: dict[str, Any] = {
        "components": components,
        "branches": branches,
        "mode": mode,
        "devices": ("cpu",) * ranks,
        "predicted": predicted,
        "cost_source": CostSource(kind="roofline", device="cpu", covered=0.0),
        "versions": {"torch": "2.13.0+cpu", "diffusers": "0.42.0", "diffusion_partitioner": "0.1.0"},
        "warmup": 2,
    }
    return Plan.from_split(graph, placed, **{**arguments, **changes})


def document(plan: Plan | None = None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((plan or make_plan(chain())).canonical)
    return found


# Files


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


def test_a_plan_keeps_the_structure_of_the_arguments(tmp_path: Path) -> None:
    literals = (("layers.0", 1), ("layers.1", None))
    graph = replace(chain(), literals=literals, containers=(("layers", "list"), ("rest", "tuple"), ("none", "dict")))
    make_plan(graph).save(tmp_path / "a.json")
    plan = Plan.load(tmp_path / "a.json")
    assert plan.example_arguments({"sample": 0}) == {"sample": 0, "layers": [1, None], "rest": (), "none": {}}
    assert plan.same_inputs(graph)
    assert not plan.same_inputs(replace(graph, containers=()))
    assert "containers" not in document()  # so that files without such arguments are what they were


def test_a_plan_says_how_guidance_is_done_where_that_is_known(tmp_path: Path) -> None:
    make_plan(chain()).model_copy(update={"guidance_style": "two-calls"}).save(tmp_path / "a.json")
    assert Plan.load(tmp_path / "a.json").guidance_style == "two-calls"
    assert "guidance_style" not in document()  # so that files without it are what they were
    with pytest.raises(PlanError, match="guidance_style"):
        Plan.parse(document() | {"guidance_style": "both"})


def test_a_plan_says_what_the_pipeline_runs_beside_it(tmp_path: Path) -> None:
    control = DriverModule(name="controlnet", class_name="ControlNetModel", parameters=3, parameter_bytes=6)
    make_plan(chain(), driver_modules=[control]).save(tmp_path / "a.json")
    assert Plan.load(tmp_path / "a.json").driver_modules == (control,)
    assert "driver_modules" not in document()  # so that files without it are what they were


def test_arguments_that_contradict_each_other_are_refused() -> None:
    changed = document() | {"containers": [{"path": "sample", "kind": "list"}]}
    with pytest.raises(PlanError, match="argument sample is both a value and a container"):
        Plan.parse(changed)


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


# Hostile files


def _changed(**changes: Any) -> bytes:
    return json.dumps({**document(), **changes}).encode()


def _placement(**changes: Any) -> bytes:
    base = document()
    return json.dumps({**base, "placement": {**base["placement"], **changes}}).encode()


def _without(name: str) -> bytes:
    base = document()
    del base[name]
    return json.dumps(base).encode()


_GOOD = make_plan(chain()).canonical
_FIRST_KEY = "blocks.0.proj/linear.0"
HOSTILE = {
    "empty": (b"", "empty"),
    "binary": (bytes(range(256)), "not UTF-8"),
    "truncated": (_GOOD[: len(_GOOD) // 2], "brackets do not match"),
    "array": (b"[1]", "expected an object"),
    "number": (b"3", "expected an object"),
    "deep": (b"[" * 1_000_000, "nested deeper"),
    "deep and closed": (b'{"a":' * 200_000 + b"1" + b"}" * 200_000, "nested deeper"),
    "duplicate key": (_GOOD.replace(b'"model"', b'"class_name"'), "stands twice"),
    "node placed twice": (_GOOD.replace(b'"blocks.1.proj/linear.0":', b'"blocks.0.proj/linear.0":'), "stands twice"),
    "NaN": (_GOOD.replace(b'"gap": 0.0', b'"gap": NaN'), "NaN"),
    "Infinity": (_GOOD.replace(b'"step_ms": 1.5', b'"step_ms": Infinity'), "Infinity"),
    "infinite by exponent": (_GOOD.replace(b'"step_ms": 1.5', b'"step_ms": 1e999'), "finite"),
    "no version": (_without("schema_version"), "schema version None"),
    "other version": (_changed(schema_version=2), "schema version 2"),
    "huge version": (_changed(schema_version=10**4000), "schema version a huge number"),
    "version true": (_changed(schema_version=True), "schema version True"),
    "missing field": (_without("placement"), "placement"),
    "unknown field": (_changed(hook="os.system"), "hook"),
    "text for a number": (_changed(warmup="2"), "warmup"),
    "float for an integer": (_changed(components=3.0), "components"),
    "boolean for an integer": (_changed(warmup=True), "warmup"),
    "null": (_changed(model=None), "model"),
    "negative warm-up": (_changed(warmup=-1), "warmup"),
    "huge number": (_changed(warmup=10**100), "warmup"),
    "no component": (_changed(components=0), "components"),
    "too many components": (_changed(components=4), "entries"),
    "three branches on three devices": (_changed(branches=3), "devices has 3 entries, expected 9"),
    "no branches": (_changed(branches=0), "branches"),
    "no streams": (_changed(streams=0), "streams"),
    "a share of no rows": (_changed(branch_rows=[0]), "branch_rows"),
    "no calls": (_changed(calls_per_step=0), "calls_per_step"),
    "boolean for branches": (_changed(branches=True), "branches"),
    "float for branches": (_changed(branches=1.0), "branches"),
    "wrong period": (_changed(period=2), "period"),
    "wrong mode": (_changed(mode="eval"), "mode"),
    "model is a path": (_changed(model="../../etc/passwd"), "model"),
    "model is absolute": (_changed(model="/etc/passwd"), "model"),
    "class is code": (_changed(class_name="__import__('os').system('ls')"), "class_name"),
    "device is a path": (_changed(devices=["cpu", "cpu", "/dev/null"]), "devices"),
    "version is code": (_changed(versions={"torch": "$(reboot)"}), "versions"),
    "fingerprint": (_changed(fingerprint="0" * 63), "fingerprint"),
    "node key is a path": (_placement(**{"../../etc/passwd": 0}), "no node key"),
    "node key is code": (_placement(**{"__import__('os')/linear.0": 0}), "no node key"),
    "node on a negative component": (_placement(**{_FIRST_KEY: -1}), "component -1"),
    "node on a huge component": (_placement(**{_FIRST_KEY: 10**300}), "a huge number"),
    "node on a component that is not there": (_placement(**{_FIRST_KEY: 7}), "every component"),
    "node on an object": (_placement(**{_FIRST_KEY: {}}), "an object"),
    "many wrong nodes": (
        json.dumps({**document(), "placement": {f"m.{i}/x.0": [] for i in range(200_000)}}).encode(),
        "an array of 0",
    ),
    "many wrong boundaries": (
        _GOOD.replace(b'"boundaries": [', b'"boundaries": [' + b"{}," * 300_000), "boundaries",
    ),
    "component without nodes": (_changed(placement=dict.fromkeys(document()["placement"], 0)), "every component"),
    "lone surrogate": (_GOOD.replace(b'"toy"', b'"\\ud800"'), "UTF-8"),
    "nul": (_GOOD.replace(b'"toy"', b'"\\u0000"'), "model"),
}  # fmt: skip


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


def test_boundaries_must_agree_with_the_placement(tmp_path: Path) -> None:
    base = document()
    assert len(base["boundaries"]) == 2
    for change, expected in (
        ({"source": 1}, "source"),
        ({"readers": [0]}, "readers"),
        ({"readers": [1, 1]}, "readers"),
        ({"readers": [9]}, "component 9 of 3"),
        ({"size_bytes": 5}, "size_bytes"),
        ({"dtype": "object"}, "dtype"),
        ({"key": "blocks.77/gelu.0"}, "not placed"),
        ({"shape": [2**40] * 16}, "size_bytes"),
    ):
        changed = copy.deepcopy(base)
        changed["boundaries"][0].update(change)
        with pytest.raises(PlanError, match=expected):
            Plan.parse(changed)
    twice = copy.deepcopy(base)
    twice["boundaries"].append(twice["boundaries"][0])
    with pytest.raises(PlanError, match="twice"):
        Plan.parse(twice)


@pytest.mark.parametrize(
    ("mode", "periods", "expected"),
    [
        ("async", [2, 2, 2], r"periods ends with 2, expected 1: component 2 makes the output"),
        ("async", [1, 1, 3], r"periods ends with 3, expected 1"),
        ("lookahead", [2, 2, 1], r"period is 2, expected 1: look-ahead recomputes"),
        ("async", [2, 3, 1], None),
    ],
)
def test_every_step_has_an_output(mode: str, periods: list[int], expected: str | None) -> None:
    changed = document(make_plan(chain(), mode=mode)) | {"periods": periods, "period": max(periods)}
    if expected is None:
        assert list(Plan.parse(changed).periods) == periods
    else:
        with pytest.raises(PlanError, match=expected):
            Plan.parse(changed)


def test_lookahead_refuses_a_boundary_that_goes_back() -> None:
    base = document(make_plan(chain(), mode="async"))
    base["boundaries"][1]["readers"] = [0, 2]
    Plan.parse(base)
    with pytest.raises(PlanError, match="goes back"):
        Plan.parse({**base, "mode": "lookahead"})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"branches": 3, "streams": 2, "calls_per_step": 2},
            "branches is 3, expected a multiple of streams, which is 2",
        ),
        ({"branches": 2, "branch_rows": [5]}, "branch_rows has 1 entries, expected none or 2: one for each branch"),
        (
            {"branches": 4, "streams": 2, "calls_per_step": 2, "branch_rows": [1, 1, 1, 1]},
            "branch_rows has 4 entries, expected none or 2",
        ),
        ({"branches": 2, "streams": 2}, "calls_per_step is 1, expected at least streams, which is 2"),
    ],
)
def test_streams_and_shares_must_fit_the_branches(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(PlanError, match=expected):
        make_plan(chain(), 1, **changes)


def test_streams_and_shares_are_in_the_file_only_where_there_are_any() -> None:
    plain = document(make_plan(chain(), 1, branches=3))
    assert not {"streams", "branch_rows", "calls_per_step"} & set(plain)
    plan = make_plan(chain(), 1, branches=4, streams=2, branch_rows=(5, 3), calls_per_step=3)
    written = document(plan)
    assert (written["streams"], written["branch_rows"], written["calls_per_step"]) == (2, [5, 3], 3)
    assert Plan.parse(written) == plan


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "device", "nul"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = {"folder": str(tmp_path), "device": "/dev/zero", "nul": "a\0b"}.get(kind, str(tmp_path / kind))
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(PlanError):
        Plan.load(path)


def _filled(start: bytes, item: Callable[[int], bytes], end: bytes) -> bytes:
    """As many items as fit in a plan file, at most as many as are parsed at all."""
    data = bytearray(start)
    for number in range(230_000):
        data += item(number)
        if len(data) > MAX_PLAN_BYTES - 400:
            break
    return bytes(data + end)


LARGE: dict[str, Callable[[], bytes]] = {
    "short keys": lambda: _filled(b'{"schema_version":1,"placement":{', lambda i: b'"%x":0,' % i, b'"x":0}}'),
    "arrays by key": lambda: _filled(b'{"schema_version":1,"placement":{', lambda i: b'"/x.%d":[],' % i, b'"x":0}}'),
    "good keys": lambda: _filled(b'{"schema_version":1,"placement":{', lambda i: b'"/x.%d":0,' % i, b'"/x.0":0}}'),
    "objects": lambda: _filled(b'{"schema_version":1,"boundaries":[', lambda i: b'{"":0},', b"1]}"),
    "strings": lambda: _filled(b'{"schema_version":1,"devices":[', lambda i: b'"\xc3\xa9",', b"1]}"),
    "boundaries": lambda: HOSTILE["many wrong boundaries"][0],
    "nodes": lambda: HOSTILE["many wrong nodes"][0],
}


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
    changed = json.loads(_GOOD)
    target = changed
    for part in path[:-1]:
        target = target[part]
    target[path[-1]] = value
    file = tmp_path_factory.getbasetemp() / "fuzz.json"
    file.write_text(json.dumps(changed))
    _load_or_refuse(file)


@settings(max_examples=300)
@given(st.integers(0, len(_GOOD)), st.integers(0, 60), st.binary(max_size=20))
def test_fuzz_bytes(tmp_path_factory: pytest.TempPathFactory, start: int, length: int, replacement: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzz.json"
    file.write_bytes(_GOOD[:start] + replacement + _GOOD[start + length :])
    _load_or_refuse(file)


def _load_or_refuse(path: Path) -> None:
    """What is loaded can be checked and placed, or is refused, too."""
    with contextlib.suppress(PlanError):
        plan = Plan.load(path)
        assert Plan.parse(json.loads(plan.canonical)) == plan
        plan.check(chain())
        plan.place(chain(rows=3))


# Fit


def test_ranks_are_numbered_from_the_output() -> None:
    assert [rank_of(b, k, 3) for b in (0, 1) for k in (0, 1, 2)] == [2, 1, 0, 5, 4, 3]
    assert rank_of(0, 3, 4) == 0
    assert [seat_of(rank_of(b, k, 3), 3) for b in (0, 1) for k in (0, 1, 2)] == [
        (b, k) for b in (0, 1) for k in (0, 1, 2)
    ]


def test_the_plans_own_graph_passes_and_keeps_its_placement() -> None:
    graph = chain()
    plan = make_plan(graph)
    plan.check(graph)
    assert list(plan.place(graph).values()) == list(plan.placement.values())


def test_another_model_is_refused_with_its_first_differences() -> None:
    plan = make_plan(chain())
    with pytest.raises(PlanError) as caught:
        plan.check(chain(layers=7, model="other"))
    assert "blocks.6.proj/linear.0" in str(caught.value)
    with pytest.raises(PlanError, match="shapes"):
        Plan.parse({**document(plan), "fingerprint": "0" * 64}).check(chain())


@pytest.mark.parametrize("kind", ["node missing", "node unknown", "boundary missing"])
def test_a_plan_that_does_not_cover_its_graph_is_refused(kind: str) -> None:
    base = document()
    if kind == "node missing":
        del base["placement"]["blocks.5/gelu.0"]
    elif kind == "node unknown":
        base["placement"]["blocks.9/gelu.0"] = 2
    else:
        del base["boundaries"][0]
    with pytest.raises(PlanError, match="boundaries" if kind == "boundary missing" else "node"):
        Plan.parse(base).check(chain())


def test_another_batch_keeps_the_placement() -> None:
    plan = make_plan(chain())
    other = chain(rows=5)
    plan.check(other)
    assert list(plan.place(other).values()) == list(plan.placement.values())


@pytest.mark.parametrize("mode", ["lookahead", "async"])
def test_nodes_of_a_lora_follow_the_layer_that_they_belong_to(mode: str) -> None:
    plan = make_plan(chain(), mode=mode)
    placed = plan.place(chain(extra=6))
    for layer in range(6):
        expected = plan.placement[f"blocks.{layer}.proj/linear.0"]
        assert [placed[f"{name}{layer}"] for name in ("linear", "lora", "sum")] == [expected] * 3
        assert placed[f"gelu{layer}"] == plan.placement[f"blocks.{layer}/gelu.0"]


def test_a_node_that_the_plan_does_not_know_never_sends_back() -> None:
    plan = make_plan(chain(layers=12), components=12)
    placed = plan.place(chain(layers=12, extra=12))
    assert list(placed.values()) == sorted(placed.values())


@pytest.mark.parametrize("layers", [3, 12])
def test_a_graph_with_too_few_or_too_many_nodes_is_refused(layers: int) -> None:
    with pytest.raises(PlanError, match="make a plan for it"):
        make_plan(chain()).place(chain(layers=layers, rows=3))


def test_what_cannot_be_cut_apart_is_refused() -> None:
    graph = chain()
    grouped = TracedGraph(**{
        **{name: getattr(graph, name) for name in graph.__dataclass_fields__},
        "nodes": tuple(
            Node(n.name, n.key, n.target, n.args, n.kwargs, n.module, n.role, n.outputs, 0 if i in (3, 4) else -1)
            for i, n in enumerate(graph.nodes)
        ),
    })  # fmt: skip
    with pytest.raises(PlanError, match="cut apart"):
        make_plan(grouped)
    placed = make_plan(graph).place(grouped)
    assert placed[grouped.nodes[3].name] == placed[grouped.nodes[4].name]
