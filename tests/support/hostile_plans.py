"""Files that are no valid plans, small and large."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from partitioner.plan.plan_files import MAX_PLAN_BYTES
from tests.support.chain_plans import chain, document, make_plan


def _changed(**changes: Any) -> bytes:
    return json.dumps({**document(), **changes}).encode()


def _placement(**changes: Any) -> bytes:
    base = document()
    return json.dumps({**base, "placement": {**base["placement"], **changes}}).encode()


def _without(name: str) -> bytes:
    base = document()
    del base[name]
    return json.dumps(base).encode()


GOOD = make_plan(chain()).canonical
_FIRST_KEY = "blocks.0.proj/linear.0"
HOSTILE = {
    "empty": (b"", "empty"),
    "binary": (bytes(range(256)), "not UTF-8"),
    "truncated": (GOOD[: len(GOOD) // 2], "brackets do not match"),
    "array": (b"[1]", "expected an object"),
    "number": (b"3", "expected an object"),
    "deep": (b"[" * 1_000_000, "nested deeper"),
    "deep and closed": (b'{"a":' * 200_000 + b"1" + b"}" * 200_000, "nested deeper"),
    "duplicate key": (GOOD.replace(b'"model"', b'"class_name"'), "stands twice"),
    "node placed twice": (GOOD.replace(b'"blocks.1.proj/linear.0":', b'"blocks.0.proj/linear.0":'), "stands twice"),
    "NaN": (GOOD.replace(b'"gap": 0.0', b'"gap": NaN'), "NaN"),
    "Infinity": (GOOD.replace(b'"step_ms": 1.5', b'"step_ms": Infinity'), "Infinity"),
    "infinite by exponent": (GOOD.replace(b'"step_ms": 1.5', b'"step_ms": 1e999'), "finite"),
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
        GOOD.replace(b'"boundaries": [', b'"boundaries": [' + b"{}," * 300_000), "boundaries",
    ),
    "component without nodes": (_changed(placement=dict.fromkeys(document()["placement"], 0)), "every component"),
    "lone surrogate": (GOOD.replace(b'"toy"', b'"\\ud800"'), "UTF-8"),
    "nul": (GOOD.replace(b'"toy"', b'"\\u0000"'), "model"),
}  # fmt: skip


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
