"""Nested arguments: taken apart and put together again, whatever they hold."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves

from partitioner.graph.arguments import flatten_arguments
from partitioner.graph.nesting import nest_arguments, nest_output, output_form

_NAMES = st.text(st.characters(exclude_characters="."), min_size=1, max_size=3)
_LITERALS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
_NESTED: Any = st.recursive(
    _LITERALS,
    lambda inner: (
        st.lists(inner, max_size=12)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(_NAMES | st.sampled_from(["0", "1"]), inner, max_size=3)
    ),
    max_leaves=15,
)


def exact(value: Any) -> Any:
    """A value with the types of all its parts, since 1 == True == 1.0."""
    if isinstance(value, dict):
        return {key: exact(item) for key, item in value.items()}
    return [type(value), *map(exact, value)] if isinstance(value, (list, tuple)) else (type(value), value)


@given(st.dictionaries(_NAMES, _NESTED, max_size=4))
@settings(max_examples=60, deadline=None)
def test_arguments_come_back_as_they_were(arguments: dict[str, Any]) -> None:
    flat = flatten_arguments(arguments)
    assert exact(nest_arguments(flat.values, flat.containers)) == exact(arguments)


@pytest.mark.parametrize(
    ("paths", "containers", "message"),
    [
        (["a", "a.b"], {}, "argument a is both a value and a container"),
        (["a.b", "a"], {}, "argument a is both a value and a container"),
        (["a"], {"a": "list"}, "argument a is both a value and a container"),
        (["a.0", "a.2"], {"a": "list"}, "the items of argument a, a list, are not 0 to 1"),
        (["a.x"], {"a": "tuple"}, "the items of argument a, a tuple, are not 0 to 0"),
    ],
)
def test_paths_that_contradict_each_other(paths: list[str], containers: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nest_arguments(dict.fromkeys(paths), containers)


@given(_NESTED)
@settings(max_examples=60, deadline=None)
def test_outputs_come_back_as_they_were(output: Any) -> None:
    leaves = tree_leaves(output, is_leaf=lambda item: item is None)
    expected = tuple(output.values()) if isinstance(output, dict) else output
    expected = tuple(expected) if isinstance(expected, (list, tuple)) else (expected,)
    assert exact(nest_output(output_form(output), iter(leaves))) == exact(expected)
