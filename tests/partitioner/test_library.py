"""library_call: what a library raises becomes a sentence with its cause; what is raised in our own lines stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from partitioner.errors import TraceError, UsageError
from partitioner.fleet import limit_memory
from partitioner.library import cause_of, library_call
from profiles.json_files import JsonFileError


class PanicException(BaseException):
    """As Rust's, which is no Exception."""


def deep(levels: int) -> Any:
    return json.loads("[" * levels + "]" * levels)


def panic() -> None:
    raise PanicException("called `Option::unwrap()` on a `None` value")


@pytest.mark.parametrize(
    ("work", "cause"),
    [
        (lambda: json.loads("{"), "Expecting property name enclosed in double quotes"),
        (lambda: deep(100_000), "RecursionError: maximum recursion depth exceeded"),
        (lambda: json.dumps(object()), "TypeError: Object of type object is not JSON serializable"),
        (panic, "PanicException: called `Option::unwrap"),
    ],
)
def test_what_a_library_raises_is_a_sentence_with_its_cause(work: Callable[[], Any], cause: str) -> None:
    with pytest.raises(UsageError) as caught, library_call("./sd cannot be loaded", "; try another"):
        work()
    assert str(caught.value).startswith(f"./sd cannot be loaded: {cause}")
    assert str(caught.value).endswith("; try another")
    assert caught.value.__cause__ is not None
    assert "\n" not in str(caught.value)


def test_a_defect_of_this_project_stays_what_it_is() -> None:
    with pytest.raises(TypeError, match="'int' object is not iterable"), library_call("never said"):
        limit_memory(7, 1e9)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [TraceError("own"), JsonFileError("own"), KeyboardInterrupt(), SystemExit(2)])
def test_errors_of_this_project_and_ends_of_the_process_pass(error: BaseException) -> None:
    def stop() -> None:
        raise error

    with pytest.raises(type(error)) as caught, library_call("never said"):
        stop()
    assert caught.value is error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("hidden_size"), "KeyError: 'hidden_size'"),
        (ValueError("  the number 2 is not odd.\nMore of it"), "the number 2 is not odd"),
        (RuntimeError("Error(s) in loading:\n\tsize mismatch for weight"), "RuntimeError: Error(s) in loading: size"),
        (MemoryError(), "MemoryError"),
        (OSError("x" * 1000), "x" * 300 + "…"),
    ],
)
def test_a_cause_is_one_line(error: Exception, said: str) -> None:
    assert cause_of(error).startswith(said)
    assert "\n" not in cause_of(error)
