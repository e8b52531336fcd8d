"""A module's example arguments with fewer rows."""

from __future__ import annotations

import torch

from partitioner.planning.argument_rows import ArgumentRows


def test_nested_arguments_are_cut_and_what_has_no_rows_is_left() -> None:
    example = {"x": torch.randn(4, 8), "more": {"ids": [torch.randn(8, 2, 2), torch.randn(1, 3)], "scale": 0.5}}
    rows = ArgumentRows(example, {"x": "latent"}, None)
    assert (rows.rows, tuple(rows.counts), rows.whole) == (4, (1, 2, 3, 4), None)
    part = rows.arguments(3)
    assert torch.equal(part["x"], example["x"][:3])
    assert [len(tensor) for tensor in part["more"]["ids"]] == [6, 1]
    assert part["more"]["scale"] == 0.5


def test_a_latent_in_a_list_or_without_dimensions_has_no_rows() -> None:
    for latent, roles in (([torch.zeros(2, 2)], {"x.0": "latent"}), (torch.zeros(()), {"x": "latent"})):
        rows = ArgumentRows({"x": latent}, roles, None)
        assert (rows.rows, tuple(rows.counts)) == (1, (1,))
        assert rows.whole is not None


def test_the_arguments_of_a_part_say_what_goes_with_the_rows() -> None:
    example = {"x": torch.zeros(4, 8), "table": torch.zeros(4, 2)}
    part = {"x": torch.zeros(2, 8), "table": torch.zeros(4, 2)}
    rows = ArgumentRows(example, {"x": "latent"}, part)
    assert rows.arguments(2) == part
    assert {name: len(tensor) for name, tensor in rows.arguments(1).items()} == {"x": 1, "table": 4}
