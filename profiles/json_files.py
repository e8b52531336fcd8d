"""JSON files from untrusted sources: read with limits, written canonically and atomically."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import stat
from pathlib import Path

from profiles.collector import without_collector

MAX_DEPTH = 32  # nested objects and arrays
MAX_VALUES = 1_000_000  # bounds memory: the smallest Python object for a value takes some 60 bytes

# A string literal; also one that the end of the file cuts off, so that no input makes the search quadratic.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_BRACKETS = b"[]{}"
_NO_BRACKETS = bytes(sorted(set(range(256)) - set(_BRACKETS)))


class JsonFileError(ValueError):
    """A file cannot be read or written as strict JSON; the message is one sentence that names the file.

    exit_code: what a command ends with.
    """

    exit_code = 2


def read_json(path: str | os.PathLike[str], max_bytes: int, max_values: int = MAX_VALUES) -> object:
    """The JSON document in a file: dicts, lists, strings, ints, finite floats, bools and None.

    Args:
        path: The file.
        max_bytes: The largest size that is read.
        max_values: How many values the document may hold.

    Raises:
        JsonFileError: And no other error, for a path that is missing or unreadable, anything but a regular file, more
            than max_bytes (known before it is read), an empty file, bytes that are not UTF-8 or not JSON, a duplicate
            key, NaN, Infinity or a number beyond float64, more than MAX_DEPTH levels, or more than max_values values.
    """
    data = _read_bytes(path, max_bytes)
    if not data.strip():
        raise JsonFileError(f"{path} is empty; expected a JSON document")
    _check_size(path, data, max_values)
    try:
        with without_collector():
            document = json.loads(
                data.decode("utf-8"),
                object_pairs_hook=_object_without_duplicates,
                parse_constant=_refuse_constant,
                parse_float=_finite_float,
            )
        if _SURROGATE_ESCAPE.search(data):
            json.dumps(document, ensure_ascii=False).encode("utf-8")  # a lone surrogate cannot be written again
    except UnicodeError:
        raise JsonFileError(f"{path} is not UTF-8 text; expected a JSON document") from None
    except json.JSONDecodeError as error:
        raise JsonFileError(f"{path} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None
    except ValueError as error:
        raise JsonFileError(f"{path} is not strict JSON: {error}") from None
    return document


def canonical_bytes(document: object) -> bytes:
    """A JSON document as bytes, always the same ones: sorted keys, UTF-8, one item a line.

    Raises:
        ValueError: The document holds NaN or Infinity.

    >>> canonical_bytes({"b": 1, "a": [2]})
    b'{\\n "a": [\\n  2\\n ],\\n "b": 1\\n}\\n'
    """
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, sort_keys=True, indent=1)
    return (text + "\n").encode("utf-8")


def write_atomic(path: str | os.PathLike[str], data: bytes, overwrite: bool) -> None:
    """Write a file so that it is there whole or not at all.

    Args:
        path: The file.
        data: What it is to hold.
        overwrite: Whether a file of that name may be replaced.

    Raises:
        JsonFileError: The file exists and may not be overwritten, or it cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}.tmp")  # a name has 255 bytes at most
    try:
        if not overwrite and os.path.lexists(target):
            raise JsonFileError(f"{path} exists already; choose another name or allow it to be overwritten")
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise JsonFileError(f"{path} cannot be written: {error.strerror or error}") from error


def _read_bytes(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    try:
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            raise JsonFileError(f"{path} is not a regular file; expected a JSON file")
        if info.st_size > max_bytes:
            raise JsonFileError(f"{path} has {info.st_size} bytes; at most {max_bytes} are read")
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise JsonFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a NUL in the path
        raise error if isinstance(error, JsonFileError) else JsonFileError(f"{path!r} is no path: {error}") from None
    if len(data) > max_bytes:
        raise JsonFileError(f"{path} has more than {max_bytes} bytes; at most that many are read")
    return data


def _check_size(path: str | os.PathLike[str], data: bytes, max_values: int) -> None:
    """Refuse too many values, or too deeply nested ones, before the parser makes objects of them."""
    structure = _STRING.sub(b"", data)
    values = sum(structure.count(mark) for mark in (b",", b"[", b"{"))
    if values > max_values:
        raise JsonFileError(f"{path} holds more than {max_values} values; no file of this project has so many")
    brackets = structure.translate(None, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):  # each round takes the innermost level away
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    if brackets:
        raise JsonFileError(f"{path} is nested deeper than {MAX_DEPTH} levels, or its brackets do not match")


def _object_without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:80]!r} stands twice in one object")
            seen.add(key)
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a finite number")


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is not a finite number")
    return number
