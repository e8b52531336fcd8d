"""Rows: which inputs of a call hold something for each row of the latent, so that they are split with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

Shapes = Mapping[str, Sequence[int]]


def split_rows(
    tensors: Mapping[str, torch.Tensor], latent: str, planned: Shapes, count: int
) -> list[dict[str, torch.Tensor]]:
    """Split inputs into ``count`` parts of equally many rows.

    Args:
        tensors: inputs by path.
        latent: path of the one whose rows count.
        planned: shapes of the inputs in the call that the plan was made for, by path; others may be missing.
        count: how many parts.

    Returns:
        The parts, by path; one part of all rows where they cannot be split evenly, or where an input cannot be told to
        go with the rows or not.

    >>> latent, prompt, ids = torch.zeros(4, 8), torch.zeros(4, 77), torch.zeros(1, 3)
    >>> parts = split_rows({"x": latent, "prompt": prompt, "ids": ids}, "x", {"x": (2, 8)}, 2)
    >>> [{path: len(tensor) for path, tensor in part.items()} for part in parts]
    [{'x': 2, 'prompt': 2, 'ids': 1}, {'x': 2, 'prompt': 2, 'ids': 1}]
    """
    shape = tensors[latent].shape
    if count == 1 or shape[0] % count:
        return [dict(tensors)]
    parts: list[dict[str, torch.Tensor]] = [{} for _ in range(count)]
    for path, tensor in tensors.items():
        split = path == latent or _goes_with_rows(tensor.shape, shape, planned.get(path), planned[latent])
        if split is None:
            return [dict(tensors)]
        pieces = tensor.chunk(count) if split else (tensor,) * count
        for part, piece in zip(parts, pieces, strict=True):
            part[path] = piece
    return parts


def _goes_with_rows(
    shape: Sequence[int], latent: Sequence[int], planned: Sequence[int] | None, planned_latent: Sequence[int]
) -> bool | None:
    """Whether an input's first dimension counts the latent's rows, or is a multiple of them; None if unknown.

    It may count frames or tokens as well, with or without the rows: what holds for the plan's call and for this one.
    """
    if not shape:
        return False
    size, rows = shape[0], latent[0]
    if planned:
        was, rows_were = planned[0], planned_latent[0]
        for other_was, other in zip(planned_latent[1:], latent[1:], strict=False):
            if other != other_was and (was, size) == (rows_were * other_was, rows * other):
                return True  # rows times frames
            if other != other_was and (was, size) == (other_was, other):
                return False  # tokens, for all rows the same
        if was * rows == size * rows_were:
            return True
        if size == was:
            return False
    if size in (1, rows):
        return size == rows
    return True if len(shape) > 2 and size % rows == 0 else None
