"""Files that strangers wrote are refused in one sentence; ours survive a round trip byte for byte."""

from __future__ import annotations

import os
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.json_files import MAX_DEPTH, MAX_VALUES, JsonFileError, canonical_bytes, read_json, write_atomic

LIMIT = 4_000_000

HOSTILE = {
    "empty": b"",
    "blank": b" \n\t",
    "binary": bytes(range(256)) * 8,
    "not_utf8": b'{"a": "\xff"}',
    "utf16": '{"a": 1}'.encode("utf-16"),
    "bom": b"\xef\xbb\xbf{}",
    "truncated": b'{"a": [1, 2',
    "open_string": b'"' + b'\\"' * 1_000_000,
    "open_escape": b'"abc\\',
    "trailing": b"{} {}",
    "duplicate_key": b'{"a": 1, "b": {"c": 1, "c": 1}}',
    "duplicate_key_escaped": b'{"a": 1, "\\u0061": 2}',
    "nan": b'{"a": NaN}',
    "infinity": b"[Infinity]",
    "minus_infinity": b"[-Infinity]",
    "overflow": b"[1e999]",
    "long_integer": b"[" + b"9" * 10_000 + b"]",
    "lone_surrogate": b'{"a": "\\ud800"}',
    "deep_arrays": b"[" * 1_000_000 + b"]" * 1_000_000,
    "deep_objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "just_too_deep": b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
    "unbalanced": b"]" * 100,
    "many_lists": b"[" + b"[]," * (MAX_VALUES + 1) + b"[]]",
    "zeros": bytes(1000),
    "control_character": b'["\x01"]',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.json"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(JsonFileError) as caught:
        read_json(path, LIMIT)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 400 + len(str(path))


def test_gigabyte_of_zeros_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "zeros.json"
    with open(path, "wb") as file:
        file.truncate(1 << 30)
    tracemalloc.start()
    try:
        with pytest.raises(JsonFileError, match=r"1073741824 bytes; at most 4000000"):
            read_json(path, LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_no_file_of_the_largest_size_takes_much_memory(tmp_path: Path) -> None:
    """The costliest document that the limits let through: as many small containers as allowed."""
    path = tmp_path / "lists.json"
    path.write_bytes(b"[" + b"[]," * (MAX_VALUES // 2 - 2) + b"[]]")
    tracemalloc.start()
    try:
        read_json(path, LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 150_000_000
    finally:
        tracemalloc.stop()


def test_special_files_and_paths_are_refused(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    begin = time.monotonic()
    for path in (tmp_path, fifo, tmp_path / "missing", Path("/dev/zero")):
        with pytest.raises(JsonFileError, match=path.name):
            read_json(path, LIMIT)
    with pytest.raises(JsonFileError):
        read_json("a\0b", LIMIT)
    assert time.monotonic() - begin < 30, "a fifo must not be waited for"


def test_file_that_lies_about_its_size_is_bounded() -> None:
    with pytest.raises(JsonFileError, match=r"more than 10 bytes"):
        read_json("/proc/self/status", 10)  # its size is given as 0


scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]))
documents = st.recursive(scalars | texts, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=20)


@given(documents)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, document: object) -> None:
    path = tmp_path_factory.mktemp("json") / "file.json"
    write_atomic(path, canonical_bytes(document), overwrite=False)
    again = read_json(path, LIMIT)
    assert again == document
    assert canonical_bytes(again) == path.read_bytes()


@given(st.binary(max_size=200))
def test_any_bytes_give_a_document_or_the_documented_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("json") / "file.json"
    path.write_bytes(data)
    try:
        canonical_bytes(read_json(path, LIMIT))
    except JsonFileError as error:
        assert str(path) in str(error)  # noqa: PT017  (not every input raises)


def test_brackets_in_strings_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "strings.json"
    document = {"[" * 50: "}" * 50 + '\\"' + "," * (MAX_VALUES + 1)}
    path.write_bytes(canonical_bytes(document))
    assert read_json(path, LIMIT) == document


def test_canonical_bytes_are_golden() -> None:
    assert canonical_bytes({"b": [1, 2.5], "a": "é", "c": {}}) == (
        '{\n "a": "é",\n "b": [\n  1,\n  2.5\n ],\n "c": {}\n}\n'.encode()
    )
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_bytes([float("nan")])


def test_write_is_atomic_and_never_silent(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_atomic(path, b"1", overwrite=False)
    with pytest.raises(JsonFileError, match="exists already"):
        write_atomic(path, b"2", overwrite=False)
    assert path.read_bytes() == b"1"
    write_atomic(path, b"2", overwrite=True)
    assert path.read_bytes() == b"2"
    with pytest.raises(JsonFileError, match="cannot be written"):
        write_atomic(tmp_path / "missing" / "file.json", b"", overwrite=True)
    assert os.listdir(tmp_path) == ["file.json"]
