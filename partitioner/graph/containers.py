"""Container: something that holds values that a forward may read, as the module state flattens, compares and restores.

A dict, list, deque or set is its own container. Others wrap what holds values without being one of these: a function's
cells and globals, an object's slots, a class's attributes, a context variable.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from types import BuiltinFunctionType, CellType, FunctionType
from typing import Any

MISSING = object()  # stands for what is not there, such as an empty cell's content


class Container(ABC):
    """Named values that somebody holds, and that may be others later.

    Attributes:
        held: Who holds them.
    """

    __slots__ = ()

    held: Any

    @abstractmethod
    def items(self) -> Iterator[tuple[Hashable, Any]]:
        """The values that it holds now, each with its name in it."""

    @abstractmethod
    def put_back(self, items: Sequence[tuple[Hashable, Any]]) -> None:
        """Hold these values again, as ``items`` gave them earlier."""


class DictContainer(Container):
    """A dict, an object's attributes among them."""

    __slots__ = ("held", "ignored")

    def __init__(self, held: dict[Any, Any], ignored: frozenset[str] = frozenset()) -> None:
        self.held = held
        self.ignored = ignored

    def items(self) -> Iterator[tuple[Hashable, Any]]:
        return ((key, value) for key, value in dict.items(self.held) if key not in self.ignored)

    def put_back(self, items: Sequence[tuple[Hashable, Any]]) -> None:
        kind = OrderedDict if isinstance(self.held, OrderedDict) else dict  # whatever a subclass forbids
        kept = [(key, value) for key, value in dict.items(self.held) if key in self.ignored]
        kind.clear(self.held)
        for key, value in (*items, *kept):
            kind.__setitem__(self.held, key, value)


class ListContainer(Container):
    """A list or a deque."""

    __slots__ = ("held",)

    def __init__(self, held: list[Any] | deque[Any]) -> None:
        self.held = held

    def items(self) -> Iterator[tuple[Hashable, Any]]:
        return enumerate(self.held)

    def put_back(self, items: Sequence[tuple[Hashable, Any]]) -> None:
        self.held.clear()
        self.held.extend(value for _, value in items)


class SetContainer(Container):
    """A set; its members are their own names."""

    __slots__ = ("held",)

    def __init__(self, held: set[Any]) -> None:
        self.held = held

    def items(self) -> Iterator[tuple[Hashable, Any]]:
        return ((value, value) for value in self.held)

    def put_back(self, items: Sequence[tuple[Hashable, Any]]) -> None:
        self.held.clear()
        self.held.update(value for _, value in items)


class CellContainer(Container):
    """A variable that a function closes over."""

    __slots__ = ("held", "name")

    def __init__(self, cell: CellType, name: str) -> None:
        self.held = cell
        self.name = name

    def items(self) -> Iterator[tuple[Hashable, Any]]:
        try:
            yield self.name, self.held.cell_contents
        except ValueError:  # it is empty
            yield self.name, MISSING

    def put_back(self, items: Sequence[tuple[Hashable, Any]]) -> None:
        for _, value in items:
            if value is MISSING:
                del self.held.cell_contents
            else:
                self.held.cell_contents = value


class NamesContainer(Container):
    """Some names of a dict: the globals that a function reads, and no others."""

    __slots__ = ("held", "names")

    def __init__(self, held: dict[str, Any], names: Sequence[str]) -> None:
        self.held = held
        self.names = names

    def items(self) -> Iterator[tuple[Hashable, Any]]:
        return ((name, self.held.get(name, MISSING)) for name in self.names)

    def put_back(self, items: Sequence[tuple[Hashable, Any]]) -> None:
        for name, value in items:
            if value is MISSING:
                self.held.pop(str(name), None)
            else:
                self.held[str(name)] = value


class AttributesContainer(Container):
    """An object's slots, or a class's own attributes: what is read and written by getattr and setattr."""

    __slots__ = ("held", "names")

    def __init__(self, held: Any, names: Sequence[str] | None) -> None:
        """Take ``names`` of an object; None: all that a class defines."""
        self.held = held
        self.names = names

    def items(self) -> Iterator[tuple[Hashable, Any]]:
        if self.names is None:
            attributes: Mapping[str, Any] = vars(self.held)
            return ((name, value) for name, value in attributes.items() if not name.startswith("__"))
        return ((name, getattr(self.held, name, MISSING)) for name in self.names)

    def put_back(self, items: Sequence[tuple[Hashable, Any]]) -> None:
        now, before = dict(self.items()), dict(items)
        for name in now.keys() | before.keys():
            value = before.get(name, MISSING)
            if now.get(name, MISSING) is value:
                continue
            if value is MISSING:
                delattr(self.held, str(name))
            else:
                setattr(self.held, str(name), value)


class FunctionsContainer(AttributesContainer):
    """The functions of a library's class or Python module, any of which somebody may replace by one of their own."""

    __slots__ = ()

    def __init__(self, held: Any) -> None:
        super().__init__(held, None)

    def items(self) -> Iterator[tuple[Hashable, Any]]:
        return ((name, value) for name, value in vars(self.held).items() if isinstance(value, _FUNCTIONS))


_FUNCTIONS = (FunctionType, BuiltinFunctionType)


class ClassesContainer(Container):
    """The classes of some objects, by the objects' names: ``module.__class__ = Patched`` shows nowhere else."""

    __slots__ = ("held",)

    def __init__(self, held: Mapping[str, Any]) -> None:
        self.held = held

    def items(self) -> Iterator[tuple[Hashable, Any]]:
        return zip(self.held.keys(), map(type, self.held.values()), strict=True)

    def put_back(self, items: Sequence[tuple[Hashable, Any]]) -> None:
        for name, kind in items:
            if type(self.held[str(name)]) is not kind:
                self.held[str(name)].__class__ = kind


class ReadContainer(Container):
    """Some attributes of an object that is no part of the denoiser, which code in the denoiser may read: a pipeline's.

    Nothing is put back: whoever has such an object changes it while he calls the denoiser.
    """

    __slots__ = ("held", "names")

    def __init__(self, held: Any, names: Sequence[str]) -> None:
        self.held = held
        self.names = names

    def items(self) -> Iterator[tuple[Hashable, Any]]:
        return ((name, _read(self.held, name)) for name in self.names)

    def put_back(self, items: Sequence[tuple[Hashable, Any]]) -> None:
        pass


class VariableContainer(Container):
    """A context variable."""

    __slots__ = ("held",)

    def __init__(self, held: ContextVar[Any]) -> None:
        self.held = held

    def items(self) -> Iterator[tuple[Hashable, Any]]:
        yield self.held.name, self.held.get(MISSING)

    def put_back(self, items: Sequence[tuple[Hashable, Any]]) -> None:
        for _, value in items:
            if value is not MISSING and self.held.get(MISSING) is not value:
                self.held.set(value)


def _read(held: Any, name: str) -> Any:
    try:
        return getattr(held, name, MISSING)
    except Exception:  # a property that has nothing to say now
        return MISSING


@dataclass(frozen=True, slots=True)
class FoundContainer:
    """A container, and where it is.

    Attributes:
        container: What holds values.
        module: Path of the module that it belongs to; empty for the denoiser itself.
        prefix: What stands before the name of a value in it, in a description: "attribute processor.".
        own: Whether it is the module's attributes themselves, or one of the dicts in which torch keeps its parts.
        is_local: Whether a walk from that module alone finds it: no class or Python module leads to it.
    """

    container: Container
    module: str
    prefix: str
    own: bool = False
    is_local: bool = False

    @property
    def is_part(self) -> bool:
        """Whether it holds a module's parameters, buffers, submodules or hooks."""
        return self.own and not self.prefix.startswith("attribute")

    def describe(self, name: object) -> str:
        """The value of that name in words: "attribute processor.maps[3]"."""
        if isinstance(self.container, ListContainer):
            return f"{self.prefix}[{name}]"
        if isinstance(self.container, SetContainer):
            return self.prefix
        return f"{self.prefix}{name}"
