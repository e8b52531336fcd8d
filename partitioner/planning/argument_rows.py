"""ArgumentRows: the rows of a module's example arguments, and the arguments of a call of fewer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from partitioner.models.call_rows import RowPaths, row_paths


@dataclass(frozen=True, eq=False)
class ArgumentRows:
    """Rows are counted along the first dimension of the latent.

    Attributes:
        example: Arguments of one call.
        roles: Of each tensor argument.
        part: Arguments of a call of fewer rows; None where they follow from the example.

    >>> import torch
    >>> example = {"x": torch.zeros(4, 8), "ids": torch.zeros(1, 3)}
    >>> rows = ArgumentRows(example, {"x": "latent"}, None)
    >>> rows.rows, {name: len(tensor) for name, tensor in rows.arguments(3).items()}
    (4, {'x': 3, 'ids': 1})
    """

    example: Mapping[str, Any]
    roles: Mapping[str, Any]
    part: Mapping[str, Any] | None

    @property
    def rows(self) -> int:
        """Of the whole call; 1 where they cannot be told."""
        return self._shapes[self._latent][0] if self._latent else 1

    @property
    def counts(self) -> Collection[int]:
        """The numbers of rows that arguments can be made for."""
        given = {self.rows} | ({self._part_rows} if self.part is not None else set())
        return given if self.whole is not None else range(1, self.rows + 1)

    @cached_property
    def whole(self) -> str | None:
        """Why the rows are not divided, as the end of a sentence; None where they can be."""
        if not self._latent:
            return "which of its arguments is the noisy sample, or what its rows are, is not known"
        return self._paths.whole

    def arguments(self, rows: int) -> dict[str, Any]:
        """Arguments of a call of so many rows, one of ``counts``."""
        if rows == self.rows:
            return dict(self.example)
        if self.part is not None and rows == self._part_rows:
            return dict(self.part)
        from partitioner.graph.arguments import flatten_arguments
        from partitioner.graph.nesting import nest_arguments

        flat = flatten_arguments(dict(self.example))
        values = dict(flat.values)
        for path in self._paths.paths:
            values[path] = flat.tensors[path][: len(flat.tensors[path]) * rows // self.rows]
        return nest_arguments(values, flat.containers)

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return _shapes_of(self.example)

    @cached_property
    def _latent(self) -> str:
        """Path of the noisy sample; "" where there is none, or it has no rows."""
        named = [path for path, role in self.roles.items() if str(getattr(role, "name", role)).lower() == "latent"]
        has_rows = named and "." not in named[0] and self._shapes.get(named[0])
        return named[0] if has_rows else ""

    @cached_property
    def _paths(self) -> RowPaths:
        return row_paths(self._shapes, self._latent, None if self.part is None else _shapes_of(self.part))

    @property
    def _part_rows(self) -> int:
        assert self.part is not None
        return _shapes_of(self.part)[self._latent][0] if self._latent else 1


def _shapes_of(arguments: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    from partitioner.graph.arguments import flatten_arguments

    return {path: tuple(tensor.shape) for path, tensor in flatten_arguments(dict(arguments)).tensors.items()}
