"""Paths of nested arguments, and the arguments put together again from them; the same for what a denoiser returns.

The path of a value names the way to it through containers: "added_cond_kwargs.text_embeds" is an entry of a dict,
"down_block_additional_residuals.0" the first item of a list or a tuple. Which of them a container is stands apart, as
data; a path about which nothing is said leads through dicts:

    {"x": tensor, "extra": {"ids": tensor, "layers": [1, None], "rest": ()}}

    values      x: tensor, extra.ids: tensor, extra.layers.0: 1, extra.layers.1: None
    containers  extra.layers: "list", extra.rest: "tuple"
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

ContainerKind = Literal["list", "tuple", "dict"]


OutputForm = tuple[ContainerKind, tuple[tuple[str, Any], ...]] | None
"""How a denoiser's output holds its values: a container's kind and its entries by key, or None for a value."""


def output_form(output: Any) -> OutputForm:
    """The form of an output; whatever is no list, tuple or dict is a value.

    >>> output_form(([1, 2], 3))
    ('tuple', (('0', ('list', (('0', None), ('1', None)))), ('1', None)))
    """
    if isinstance(output, Mapping):
        return "dict", tuple((str(key), output_form(item)) for key, item in output.items())
    if isinstance(output, (list, tuple)):
        kind: ContainerKind = "list" if isinstance(output, list) else "tuple"
        return kind, tuple((str(position), output_form(item)) for position, item in enumerate(output))
    return None


def nest_output(form: OutputForm, values: Iterator[Any]) -> tuple[Any, ...]:
    """An output as a tuple, put together of its values in order: what is in the outermost container, or one value.

    >>> nest_output(output_form({"sample": [0, 0], "rest": 0}), iter("abc"))
    (['a', 'b'], 'c')
    """
    if form is None:
        return (next(values),)
    return tuple(_nested(item, values) for _, item in form[1])


def _nested(form: OutputForm, values: Iterator[Any]) -> Any:
    if form is None:
        return next(values)
    entries = {key: _nested(item, values) for key, item in form[1]}
    if form[0] == "dict":
        return entries
    return list(entries.values()) if form[0] == "list" else tuple(entries.values())


def nest_arguments(values: Mapping[str, Any], containers: Mapping[str, str]) -> dict[str, Any]:
    """Put arguments together again, the inverse of ``flatten_arguments``.

    Args:
        values: Tensors, literals or whatever stands for them, by path, in the order that they are to have in a dict.
        containers: Kind of the lists, tuples and empty dicts, by path.

    Raises:
        ValueError: The paths contradict each other: one is both a value and a container, or a list lacks an item.

    >>> nest_arguments({"extra.scale": 0.5, "extra.kind.0": "a", "extra.kind.1": None}, {"extra.kind": "list"})
    {'extra': {'scale': 0.5, 'kind': ['a', None]}}
    """
    tree: dict[str, Any] = {}
    for path, value in values.items():
        *parents, last = path.split(".")
        inner = _container_at(tree, parents)
        if last in inner:
            raise ValueError(f"argument {path} is both a value and a container")
        inner[last] = value
    for path in containers:
        _container_at(tree, path.split("."))
    return {name: _build(name, item, containers) for name, item in tree.items()}


def _container_at(tree: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    for key in keys:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise ValueError(f"argument {'.'.join(keys)} is both a value and a container")
    return tree


def _build(path: str, item: Any, containers: Mapping[str, str]) -> Any:
    if not isinstance(item, dict):
        return item
    entries = {key: _build(f"{path}.{key}", entry, containers) for key, entry in item.items()}
    kind = containers.get(path, "dict")
    if kind == "dict":
        return entries
    if entries.keys() != {str(position) for position in range(len(entries))}:
        raise ValueError(f"the items of argument {path}, a {kind}, are not 0 to {len(entries) - 1}")
    items = [entries[str(position)] for position in range(len(entries))]
    return items if kind == "list" else tuple(items)
