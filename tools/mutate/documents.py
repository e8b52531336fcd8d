"""Mutations of JSON files: a value is replaced, left out, doubled or moved, or the file's bytes are damaged."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

DEEP = 20_000  # levels; Python's own parser gives up at a thousand
# what stands where something else was expected; NaN and Infinity are written as Python writes them
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, 2, 3, 7, -1, -(2**31), 2**31, 2**63, 10**30, 10**400, 0.5, -1.5, 1e308, 5e-324,
    float("nan"), float("inf"), "", "x", "\0", "\x1b[2J", "a\nb", "\ud800", "../../..", "/etc/passwd", "é" * 300, "nan",
    "1", "x" * 200_000, [], {}, [None], [[]], {"": 0}, ["x"], [1, 2], [-1], [0, 0, 0], [0] * 20_000,
)  # fmt: skip
FACTORS = (-1, 0, 1, 1, 2, 3, 1000, 10**6, 10**12)
_TRIES = 100  # to mutate a file so that it can be loaded
_Place = tuple[Any, ...]  # keys and positions that lead to a value


def mutated_json(data: bytes, random: Random) -> tuple[bytes, str]:
    """A JSON file with one to three mutations, and what they are.

    Args:
        data: The file, which holds JSON.
        random: What chooses.
    """
    if random.random() < 0.2:
        return damaged(data, random)
    document, done = json.loads(data), []
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        document, what = _mutated(document, random)
        done.append(what)
    return json.dumps(document).encode(errors="surrogatepass"), "; ".join(done)


def mutated_file(original: Path, file: Path, load: Callable[[Path], object], random: Random) -> str:
    """Write a mutated copy of a JSON file; every second one can be loaded, so that more than its form is tested.

    Args:
        original: The file.
        file: The copy.
        load: What reads such files, and raises where it cannot.
        random: What chooses.

    Returns:
        What was mutated.
    """
    data, what = mutated_json(original.read_bytes(), random)
    tries = random.choice((0, _TRIES))
    while tries and not _is_sound(data, original, file, load):
        data, what = mutated_json(original.read_bytes(), random)
        tries -= 1
    file.write_bytes(data)
    return what


def _is_sound(data: bytes, original: Path, file: Path, load: Callable[[Path], object]) -> bool:
    """Whether a file with this data can be read, and says something else than the original."""
    file.write_bytes(data)
    try:
        load(file)
    except Exception:
        return False
    return bool(json.loads(data) != json.loads(original.read_bytes()))


def damaged(data: bytes, random: Random) -> tuple[bytes, str]:
    """A file's bytes, damaged, and how."""
    at = random.randrange(len(data) + 1)
    name, make = random.choice(_DAMAGES)
    return make(data, at, random), f"{name} at byte {at}"


def _flipped(data: bytes, at: int, random: Random) -> bytes:
    made = bytearray(data)
    for _ in range(random.choice((1, 8, 64))):
        if made:
            made[random.randrange(len(made))] ^= 1 << random.randrange(8)
    return bytes(made)


_DAMAGES: tuple[tuple[str, Callable[[bytes, int, Random], bytes]], ...] = (
    ("cut off", lambda data, at, random: data[:at]),
    ("flipped", _flipped),
    ("junk put in", lambda data, at, random: data[:at] + random.randbytes(20) + data[at:]),
    ("bytes left out", lambda data, at, random: data[:at] + data[at + 9 :]),
    ("emptied", lambda data, at, random: b""),
    ("all junk", lambda data, at, random: random.randbytes(300)),
    ("deep lists", lambda data, at, random: b"[" * DEEP + b"]" * DEEP),
    ("deep objects", lambda data, at, random: b'{"a":' * DEEP + b"1" + b"}" * DEEP),
    ("a deep value", lambda data, at, random: data.rstrip()[:-1] + b',"deep":' + b"[" * DEEP + b"]" * DEEP + b"}"),
    ("a byte order mark", lambda data, at, random: b"\xef\xbb\xbf" + data),
    ("UTF-16", lambda data, at, random: data.decode(errors="replace").encode("utf-16")),
    ("doubled", lambda data, at, random: data + data),
    ("key twice", lambda data, at, random: _with_key_twice(data)),
    ("a long number", lambda data, at, random: data.rstrip()[:-1] + b',"long":' + b"9" * 5000 + b"}"),
    ("another value", lambda data, at, random: json.dumps(random.choice(ODD)).encode()),
)


def _with_key_twice(data: bytes) -> bytes:
    key = re.search(rb'"[^"\\]+"(?=\s*:)', data)
    return data.rstrip()[:-1] + b"," + (key[0] if key else b'"a"') + b":null}"


def _mutated(document: Any, random: Random) -> tuple[Any, str]:
    """A document with one value changed, and how."""
    document = copy.deepcopy(document)
    place = _chosen(document, random)
    if not place:
        return random.choice(ODD), "another document"
    owner, key = _at(document, place[:-1]), place[-1]
    where = ".".join(map(str, place))
    old = owner[key]
    kind = random.randrange(10)
    if kind == 0:
        del owner[key]
        return document, f"{where} left out"
    if kind == 1 and isinstance(owner, dict):
        owner[f"{key}x"] = owner.pop(key)
        return document, f"{where} renamed"
    if kind == 1:
        owner.insert(key, copy.deepcopy(old))
        return document, f"{where} twice"
    if kind == 2:
        other = _chosen(document, random)
        owner[key] = copy.deepcopy(_at(document, other))
        return document, f"{where} is {'.'.join(map(str, other))}"
    if kind in (8, 9):  # what may well be taken for right
        alike = [other for _ in range(30) if type(_at(document, other := _chosen(document, random))) is type(old)]
        other = random.choice([other for other in alike if other[: len(place)] != place] or [place])
        owner[key] = copy.deepcopy(_at(document, other))
        if kind == 9 and place[: len(other)] != other:
            _at(document, other[:-1])[other[-1]] = old
            return document, f"{where} and {'.'.join(map(str, other))} exchanged"
        return document, f"{where} is {'.'.join(map(str, other))}"
    if kind in (3, 4) and isinstance(old, (int, float)):
        owner[key] = old * random.choice(FACTORS) + random.choice((-1, 0, 1))
    elif kind == 3 and isinstance(old, str):
        owner[key] = random.choice((old + "x", old[:-1], old.upper(), old * 100, f"{old}.0", f"{old}.{old}"))
    elif kind == 3 and isinstance(old, list):
        owner[key] = random.choice((old * 2, old[:-1], old[::-1], [old], old * 1000))
    else:
        owner[key] = random.choice(ODD)
    return document, f"{where} {_short(old)} -> {_short(owner[key])}"


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _chosen(value: Any, random: Random) -> _Place:
    """A place in a document: down from the top, where each entry is as likely as another, to some depth."""
    place: list[Any] = []
    while isinstance(value, (dict, list)) and value and (not place or random.random() < 0.7):
        key = random.choice(list(value) if isinstance(value, dict) else range(len(value)))
        place.append(key)
        value = value[key]
    return tuple(place)


def _at(document: Any, place: _Place) -> Any:
    for key in place:
        document = document[key]
    return document
