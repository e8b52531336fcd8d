"""ModuleForm: what a module's attributes hold, in a form that tells whether they hold the like again.

Hooks that are taken off and put on anew are other objects of the same classes, with the same values in them: their form
is the same. Tensors, submodules, classes and code count by identity, numbers and strings by value, and all else by what
it consists of. What shares an object in one form shares it in the other.
"""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Collection, Hashable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from partitioner.graph.belonging import is_followed
from partitioner.graph.container_group import Items
from partitioner.graph.reachable import NOT_READ
from partitioner.graph.torch_private.fakes import FakeTensor

_PLAIN = (
    type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.layout, torch.memory_format,
    torch.Size, range, slice, type(Ellipsis),
)  # fmt: skip
# Dicts of a module whose keys are the numbers of hooks: only their order counts.
_NUMBERED = frozenset({
    "_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
})  # fmt: skip


class ModuleForm:
    """The form of one module's attributes.

    >>> layer = torch.nn.Linear(2, 2)
    >>> before = ModuleForm(layer)
    >>> layer.scales = {"default": [0.5]}
    >>> scaled = ModuleForm(layer)
    >>> layer.scales = {"default": [0.5]}
    >>> ModuleForm(layer) == scaled, ModuleForm(layer) == before
    (True, False)
    """

    def __init__(
        self,
        module: nn.Module,
        ignored: frozenset[str] = frozenset(),
        submodules: Collection[int] = (),
        held: Mapping[int, Items] | None = None,
    ) -> None:
        """Take it.

        Args:
            module: Whose attributes count.
            ignored: Names of attributes of the module itself that do not count.
            submodules: Ids of the modules that have forms of their own.
            held: By the id of a dict, list, set or cell, what it is taken to hold instead of what it holds now.
        """
        self._submodules = submodules
        self._held = held or {}
        self._kept: list[Any] = []  # so that no number is given away again
        self._numbers: dict[int, int] = {}
        self._queue: deque[Any] = deque()
        lines: list[Hashable] = [self._attributes(module.__dict__, ignored | NOT_READ)]
        while self._queue:
            lines.append(self._described(self._queue.popleft()))
        self._lines = tuple(lines)
        self._hash = hash(self._lines)
        del self._numbers, self._queue, self._held, self._submodules

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModuleForm) and self._hash == other._hash and self._lines == other._lines

    def __hash__(self) -> int:
        return self._hash

    def _sign(self, value: Any) -> Hashable:
        """What stands for a value: itself where it is plain, else its number, in the order of appearance."""
        if isinstance(value, _PLAIN):
            return type(value), repr(value)
        if isinstance(value, torch.Tensor) and value.__dict__ and not isinstance(value, FakeTensor):
            return self._itself(value), self._sign(value.__dict__)
        is_hidden = isinstance(value, nn.Module) and id(value) not in self._submodules
        if not is_hidden and not is_followed(value):
            return self._itself(value)
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._numbers)
            self._kept.append(value)
            self._queue.append(value)
        return "number", self._numbers[id(value)]

    def _itself(self, value: Any) -> Hashable:
        self._kept.append(value)
        return "itself", id(value)

    def _described(self, value: Any) -> Hashable:
        """What a value consists of."""
        parts: Any
        if isinstance(value, dict):
            parts = self._named(self._items_of(value))
        elif isinstance(value, (list, deque)):
            parts = self._signs(item for _, item in self._items_of(value))
        elif isinstance(value, (set, frozenset)):
            parts = self._members([item for _, item in self._items_of(value)])
        elif isinstance(value, tuple):
            parts = self._signs(value)
        elif isinstance(value, types.FunctionType):
            given = (value.__defaults__, value.__kwdefaults__, value.__dict__, *(value.__closure__ or ()))
            parts = (id(value.__code__), id(value.__globals__), self._signs(given))
        elif isinstance(value, types.CellType):
            parts = self._named(self._items_of(value))
        elif isinstance(value, types.MethodType):
            parts = self._signs((value.__self__, value.__func__))
        elif isinstance(value, functools.partial):
            parts = self._signs((value.func, value.args, value.keywords))
        else:
            attributes = getattr(value, "__dict__", None)
            own = self._attributes(attributes, NOT_READ) if isinstance(attributes, dict) else ()
            parts = own if _is_open(value) else (id(value), own)
        return id(type(value)), parts

    def _attributes(self, attributes: dict[str, Any], ignored: frozenset[str]) -> Hashable:
        """Of an object, in the order of their names."""
        items: dict[Any, Any] = dict(self._items_of(attributes))
        order: dict[Hashable, int] = {}
        for name in ("_forward_hooks", "_forward_pre_hooks"):
            order |= {key: place for place, (key, _) in enumerate(self._items_of(items.get(name, {})))}
        parts: list[Hashable] = []
        for name in sorted(items.keys() - ignored, key=str):
            if name in _NUMBERED:
                hooks = tuple((order.get(key), self._sign(hook)) for key, hook in self._items_of(items[name]))
                parts.append((name, hooks))
            else:
                parts.append((name, self._sign(items[name])))
        return tuple(parts)

    def _items_of(self, value: Any) -> Items:
        """What a dict, list, set or cell holds, or is taken to hold."""
        if id(value) in self._held:
            return self._held[id(value)]
        if isinstance(value, dict):
            return list(dict.items(value))
        if isinstance(value, types.CellType):
            return _content(value)
        return list(enumerate(value))

    def _members(self, items: list[Any]) -> Hashable:
        """Of a set; of objects that are no plain values there is no order in which to compare them."""
        if all(isinstance(item, _PLAIN) for item in items):
            return frozenset(map(self._sign, items))
        return id(self)

    def _named(self, items: Iterable[tuple[Hashable, Any]]) -> Hashable:
        return tuple((self._sign(name), self._sign(value)) for name, value in items)

    def _signs(self, values: Iterable[Any]) -> Hashable:
        return tuple(map(self._sign, values))


def _content(cell: types.CellType) -> Items:
    try:
        return [("", cell.cell_contents)]
    except ValueError:  # it is empty
        return []


def _is_open(value: Any) -> bool:
    """Whether an object is what its attributes say: its class is made in Python and keeps nothing beside them."""
    kind = type(value)
    slots = any(vars(base).get("__slots__") for base in kind.__mro__)
    return bool(kind.__flags__ & _MADE_IN_PYTHON) and kind.__basicsize__ <= _Plain.__basicsize__ and not slots


class _Plain:
    pass


_MADE_IN_PYTHON = 1 << 9  # Py_TPFLAGS_HEAPTYPE
