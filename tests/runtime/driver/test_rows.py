"""Rows: which inputs are split with the latent's rows, and when nothing is."""

from __future__ import annotations

import pytest
import torch

from runtime.driver.rows import split_rows


@pytest.mark.parametrize(
    ("planned_latent", "planned", "latent", "shape", "split"),
    [
        # planned inputs of the same size
        ((1, 4, 8, 8), (1, 77, 6), (2, 4, 8, 8), (2, 77, 6), True),
        ((1, 4, 8, 8), (77, 6), (2, 4, 8, 8), (77, 6), False),
        ((1, 4, 8, 8), (), (2, 4, 8, 8), (), False),
        ((2, 4, 8, 8), (2,), (4, 4, 8, 8), (1,), False),  # one timestep for all rows
        # the prompt's rows once per frame, at another number of frames
        ((1, 4, 16, 8, 8), (16, 77, 6), (2, 4, 16, 8, 8), (32, 77, 6), True),
        ((1, 4, 16, 8, 8), (16, 77, 6), (2, 4, 8, 8, 8), (16, 77, 6), True),
        ((1, 4, 16, 8, 8), (16, 77, 6), (2, 4, 12, 8, 8), (24, 77, 6), True),
        # positions of the tokens, for all rows the same, at another size
        ((1, 64, 16), (64, 3), (2, 64, 16), (64, 3), False),
        ((1, 64, 16), (64, 3), (2, 128, 16), (128, 3), False),
        # inputs that the plan does not know
        ((1, 4, 8, 8), None, (2, 4, 8, 8), (2, 32, 4, 4), True),
        ((1, 4, 8, 8), None, (2, 4, 8, 8), (32, 32, 4, 4), True),
        ((1, 4, 8, 8), None, (2, 4, 8, 8), (1, 5, 4, 4), False),
        ((1, 4, 8, 8), None, (2, 4, 8, 8), (), False),
        ((1, 4, 8, 8), None, (2, 4, 8, 8), (3, 4), None),
        ((1, 4, 8, 8), None, (2, 4, 8, 8), (64, 3), None),
    ],
)
def test_what_goes_with_the_rows(
    planned_latent: tuple[int, ...],
    planned: tuple[int, ...] | None,
    latent: tuple[int, ...],
    shape: tuple[int, ...],
    split: bool | None,
) -> None:
    tensors = {"x": torch.zeros(latent), "other": torch.zeros(shape)}
    known = {"x": planned_latent, **({"other": planned} if planned is not None else {})}
    parts = split_rows(tensors, "x", known, [1, 1])
    if split is None:
        assert [part["other"].shape for part in parts] == [shape]
    else:
        expected = (shape[0] // 2, *shape[1:]) if split else shape
        assert [part["other"].shape for part in parts] == [expected, expected]
        assert [part["x"].shape[0] for part in parts] == [latent[0] // 2] * 2


@pytest.mark.parametrize(
    ("planned", "rows", "tokens"),
    [
        ((1, 16), 2, 32),  # twice the rows, and twice the text
        ((2, 16), 2, 16),  # the rows of one branch of the plan, now shared by two
        ((2, 16), 4, 32),
    ],
)
def test_ids_of_another_inputs_tokens_do_not_go_with_the_rows(planned: tuple[int, int], rows: int, tokens: int) -> None:
    rows_were, tokens_were = planned
    known = {"x": (rows_were, 64, 8), "text": (rows_were, tokens_were, 6), "ids": (tokens_were, 3)}
    tensors = {"x": torch.zeros(rows, 64, 8), "text": torch.zeros(rows, tokens, 6), "ids": torch.zeros(tokens, 3)}
    for part in split_rows(tensors, "x", known, [1, 1]):
        assert [len(part[path]) for path in ("x", "text", "ids")] == [rows // 2, rows // 2, tokens]


def test_rows_that_do_not_divide_stay_together() -> None:
    tensors = {"x": torch.zeros(3, 4)}
    assert [part["x"].shape for part in split_rows(tensors, "x", {"x": (1, 4)}, [1, 1])] == [(3, 4)]


@pytest.mark.parametrize(
    ("rows", "shares", "expected"), [(8, [5, 3], [5, 3]), (16, [5, 3], [10, 6]), (4, [5, 3], [2, 2]), (5, [5, 3], [5])]
)
def test_rows_are_shared_out_in_proportion_where_they_divide_so(
    rows: int, shares: list[int], expected: list[int]
) -> None:
    tensors = {"x": torch.randn(rows, 4), "frames": torch.randn(3 * rows, 2), "ids": torch.zeros(1, 3)}
    parts = split_rows(tensors, "x", {"x": (8, 4), "frames": (24, 2)}, shares)
    assert [len(part["x"]) for part in parts] == expected
    assert all(torch.equal(torch.cat([part[path] for part in parts]), tensors[path]) for path in ("x", "frames"))
