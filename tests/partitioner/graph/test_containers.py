"""Container: what each kind holds, and that it can be put back."""

from __future__ import annotations

from collections import OrderedDict, deque
from types import CellType
from typing import Any

import pytest

from partitioner.graph.containers import (
    MISSING,
    AttributesContainer,
    CellContainer,
    Container,
    DictContainer,
    ListContainer,
    NamesContainer,
    SetContainer,
)


class Frozen(OrderedDict[str, int]):
    """As diffusers' configurations are."""

    def __setitem__(self, key: str, value: int) -> None:
        raise TypeError("frozen")


class Slotted:
    __slots__ = ("one", "two")


@pytest.mark.parametrize("held", [{"a": 1, "b": 2}, OrderedDict(a=1, b=2)])
def test_a_dict_gets_back_its_values_in_their_order(held: dict[str, int]) -> None:
    container = DictContainer(held)
    saved = list(container.items())
    del held["a"]
    held |= {"c": 3, "a": 4}
    container.put_back(saved)
    assert list(held.items()) == [("a", 1), ("b", 2)]


def test_a_frozen_dict_is_put_back_too() -> None:
    held = Frozen()
    DictContainer(held).put_back([("a", 1)])
    assert list(held.items()) == [("a", 1)]


def test_an_ignored_name_is_neither_seen_nor_touched() -> None:
    held = {"forward": 1, "n": 1}
    container = DictContainer(held, frozenset({"forward"}))
    saved = list(container.items())
    held |= {"forward": 2, "n": 2}
    container.put_back(saved)
    assert held == {"forward": 2, "n": 1}


@pytest.mark.parametrize("held", [[1, 2], deque([1, 2]), {1, 2}])
def test_a_list_a_deque_and_a_set(held: Any) -> None:
    container: Container = SetContainer(held) if isinstance(held, set) else ListContainer(held)
    saved = list(container.items())
    held.pop()
    held.update({7}) if isinstance(held, set) else held.append(7)
    container.put_back(saved)
    assert held == type(held)([1, 2])


def test_a_cell_may_be_empty() -> None:
    cell: CellType = CellType()
    container = CellContainer(cell, "count")
    saved = list(container.items())
    assert saved == [("count", MISSING)]
    cell.cell_contents = 1
    assert list(container.items()) == [("count", 1)]
    container.put_back(saved)
    assert list(container.items()) == saved


def test_only_the_named_globals_count() -> None:
    names = {"a": 1, "b": 1}
    container = NamesContainer(names, ["a", "later"])
    saved = list(container.items())
    names |= {"a": 2, "b": 2, "later": 2}
    container.put_back(saved)
    assert names == {"a": 1, "b": 2}


def test_slots_and_the_attributes_of_a_class() -> None:
    slotted = Slotted()
    slotted.one = 1
    slots = AttributesContainer(slotted, ["one", "two"])
    saved = list(slots.items())
    slotted.two = 2
    slots.put_back(saved)
    assert slotted.one == 1
    assert not hasattr(slotted, "two")

    class Counter:
        calls = 0

    own = AttributesContainer(Counter, None)
    before = list(own.items())
    Counter.calls = 3
    assert own.items() != before
    own.put_back(before)
    assert Counter.calls == 0
