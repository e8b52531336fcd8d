"""Which inputs go with a call's rows."""

from __future__ import annotations

import pytest

from partitioner.models.call_rows import row_paths


@pytest.mark.parametrize(
    ("shape", "other", "expected"),
    [
        ((4, 77), None, True),
        ((1, 3), None, False),
        ((), None, False),
        ((32, 77, 9), None, True),  # frames of each row
        ((6,), None, None),
        ((4, 3), (4, 3), False),  # as long as there are rows, by chance
        ((32,), (16,), True),
        ((6,), (6,), False),
        ((6,), (5,), None),
    ],
)
def test_what_goes_with_four_rows(shape: tuple[int, ...], other: tuple[int, ...] | None, expected: bool | None) -> None:
    two = None if other is None else {"x": (2, 8), "given": other}
    found = row_paths({"x": (4, 8), "given": shape}, "x", two)
    assert ("given" in found.paths) == (expected is True)
    assert (found.whole is not None) == (expected is None)
    assert "x" in found.paths
    if expected:
        assert found.shape("given", shape, 1, 4) == (shape[0] // 4, *shape[1:])
    else:
        assert found.shape("given", shape, 1, 4) == shape


def test_what_is_unclear_is_named() -> None:
    found = row_paths({"x": (4, 8), "what": (6,), "else": (7,)}, "x")
    assert found.whole == "whether what, else goes with the rows cannot be told from its shape"
