"""Rows: which inputs of a call hold something for each row of the latent, so that they are split with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

Shapes = Mapping[str, Sequence[int]]


def split_rows(
    tensors: Mapping[str, torch.Tensor], latent: str, planned: Shapes, shares: Sequence[int]
) -> list[dict[str, torch.Tensor]]:
    """Split inputs into parts, each of some rows.

    Args:
        tensors: inputs by path.
        latent: path of the one whose rows count.
        planned: shapes of the inputs in the call that the plan was made for, by path; others may be missing.
        shares: of each part, in proportion to the others; equal ones where the rows can only be split evenly.

    Returns:
        The parts, by path; one part of all rows where they cannot be split so, or where an input cannot be told to go
        with the rows or not.

    >>> latent, prompt, ids = torch.zeros(4, 8), torch.zeros(4, 77), torch.zeros(1, 3)
    >>> parts = split_rows({"x": latent, "prompt": prompt, "ids": ids}, "x", {"x": (2, 8)}, [3, 1])
    >>> [{path: len(tensor) for path, tensor in part.items()} for part in parts]
    [{'x': 3, 'prompt': 3, 'ids': 1}, {'x': 1, 'prompt': 1, 'ids': 1}]
    """
    shape = tensors[latent].shape
    if shape[0] % sum(shares):
        shares = [1] * len(shares)
    whole = sum(shares)
    if len(shares) == 1 or shape[0] % whole:
        return [dict(tensors)]
    parts: list[dict[str, torch.Tensor]] = [{} for _ in shares]
    for path, tensor in tensors.items():
        was = planned.get(path)
        split = path == latent or (
            not (was and _counts_tokens(path, tensors, planned, latent))
            and _goes_with_rows(tensor.shape, shape, was, planned[latent])
        )
        if split is None:
            return [dict(tensors)]
        sizes = [share * len(tensor) // whole for share in shares] if split else []
        pieces = torch.split(tensor, sizes) if split else (tensor,) * len(shares)
        for part, piece in zip(parts, pieces, strict=True):
            part[path] = piece
    return parts


def _counts_tokens(path: str, tensors: Mapping[str, torch.Tensor], planned: Shapes, latent: str) -> bool:
    """Whether an input has a value, or a few, for each of another input's tokens, as ids of text do.

    Its length is then one of the other's, in the plan's call as in this one. It may be a multiple of the rows, too.
    """
    size, was = tensors[path].shape, planned[path]
    if len(size) not in (1, 2) or (was[0], size[0]) == (planned[latent][0], len(tensors[latent])):
        return False
    return any(
        (was[0], size[0]) in zip(planned[other][1:], tensor.shape[1:], strict=False)
        for other, tensor in tensors.items()
        if other != path and other in planned
    )


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
