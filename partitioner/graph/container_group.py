"""Group: what some containers held when it was made, and fast whether they hold other objects now."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from operator import is_, methodcaller
from typing import Any

import numpy

from partitioner.graph.containers import (
    CellContainer,
    ClassesContainer,
    DictContainer,
    FoundContainer,
    FunctionsContainer,
    ListContainer,
    SetContainer,
)

Items = Sequence[tuple[Hashable, Any]]

PLAIN = (DictContainer, ListContainer, SetContainer, CellContainer)  # what a ModuleForm shows the content of
_END = object()
_VALUES = methodcaller("values")


class Group:
    """Some modules' containers and what they held.

    Attributes:
        places: By path of the module, its containers and where they are.
    """

    def __init__(self, places: Mapping[str, Sequence[FoundContainer]]) -> None:
        """Take what they hold."""
        self.places = dict(places)
        self._saved = {path: [list(place.container.items()) for place in held] for path, held in places.items()}
        self._prepare()

    def take(self, path: str, places: Sequence[FoundContainer]) -> None:
        """Take what other containers hold in the place of a module's so far."""
        self.places[path] = places
        self._saved[path] = [list(place.container.items()) for place in places]
        self._prepare()

    def all(self) -> Iterator[tuple[FoundContainer, Items]]:
        """Each container and what it held."""
        for path, places in self.places.items():
            yield from zip(places, self._saved[path], strict=True)

    def _prepare(self) -> None:
        """Lay out what is looked at at every call."""
        self._dicts: list[dict[Any, Any]] = []
        self._empty: list[Any] = []
        self._lists: list[Any] = []
        self._others: list[tuple[FoundContainer, Items]] = []
        # whose functions count, and all that is there
        self._functions: list[tuple[FoundContainer, Items, Mapping[str, Any], list[Any]]] = []
        self._namespaces: list[Mapping[str, Any]] = []
        self._classed: list[Any] = []
        values: list[Any] = []
        named: list[Any] = []
        items: list[Any] = []
        classes: list[type] = []
        for place, saved in self.all():
            container = place.container
            if isinstance(container, DictContainer) and not container.ignored:
                (self._dicts if saved else self._empty).append(container.held)
                values += [value for _, value in saved]
            elif isinstance(container, ListContainer):
                (self._lists if saved else self._empty).append(container.held)
                items += [value for _, value in saved]
            elif isinstance(container, FunctionsContainer):
                namespace = vars(container.held)
                self._functions.append((place, saved, namespace, list(namespace.values())))
                self._namespaces.append(namespace)
                named += namespace.values()
            elif isinstance(container, ClassesContainer):
                self._classed += container.held.values()
                classes += [kind for _, kind in saved]
            else:
                self._others.append((place, saved))
        # something to end with, so that values that have become more are not taken for the same
        self._dicts.append({"": _END})
        self._lists.append([_END])
        self._namespaces.append({"": _END})
        self._values = _addresses([*values, _END], len(values) + 1)
        self._items = [*items, _END]
        self._named = [*named, _END]
        self._classes = classes
        self._count = len(values) + 1

    def changed(self) -> bool:
        """Whether any of them holds another object than it did."""
        return (
            any(self._empty)
            or self._dicts_changed()
            or not all(map(is_, chain.from_iterable(self._lists), self._items))
            or not all(map(is_, map(type, self._classed), self._classes))
            or any(differ(saved, list(place.container.items())) for place, saved in self._others)
            or (
                not all(map(is_, chain.from_iterable(map(_VALUES, self._namespaces)), self._named))
                and any(
                    not _are(namespace.values(), values) and differ(saved, list(place.container.items()))
                    for place, saved, namespace, values in self._functions
                )
            )
        )

    def _dicts_changed(self) -> bool:
        """Whether dicts hold others than they did."""
        now = chain.from_iterable(map(dict.values, self._dicts))
        try:
            return _addresses(now, self._count) != self._values
        except ValueError:  # they hold fewer
            return True

    def moved(self) -> list[tuple[FoundContainer, Items]]:
        """The containers that hold other objects than they did, and what they held."""
        return [(place, saved) for place, saved in self.all() if differ(saved, list(place.container.items()))]

    def held(self, path: str) -> dict[int, Items]:
        """What each of a module's held, by the id of what holds it."""
        places = zip(self.places[path], self._saved[path], strict=True)
        return {id(place.container.held): saved for place, saved in places}


def differ(saved: Items, now: Items) -> bool:
    """Whether any item is another object, or has another name."""
    return len(saved) != len(now) or any(a is not b or key != name for (key, a), (name, b) in zip(saved, now))  # noqa: B905


def _addresses(values: Iterable[Any], count: int) -> bytes:
    """Of the first so many: all in one, which is compared in a fraction of the time that one after the other takes.

    Raises:
        ValueError: There are fewer.
    """
    return numpy.fromiter(values, dtype=object, count=count).tobytes()


def _are(now: Collection[Any], values: Sequence[Any]) -> bool:
    """Whether they are the very same objects, in order: looked at in C."""
    return len(now) == len(values) and all(map(is_, now, values))
