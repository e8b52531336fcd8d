"""Group: sees that a container holds another object, and which."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from partitioner.graph.container_group import Group
from partitioner.graph.containers import (
    ClassesContainer,
    DictContainer,
    FoundContainer,
    FunctionsContainer,
    ListContainer,
    SetContainer,
)


def place(container: Any, module: str) -> FoundContainer:
    return FoundContainer(container, module, "attribute ")


def test_what_has_moved_is_told_with_what_it_held() -> None:
    held: tuple[Any, ...] = {"a": 1, "b": 2}, [1, 2], {3}
    containers = DictContainer(held[0]), ListContainer(held[1]), SetContainer(held[2])
    group = Group(
        {"one": [place(containers[0], "one"), place(containers[1], "one")], "two": [place(containers[2], "two")]}
    )
    assert not group.changed()
    assert group.moved() == []
    held[0]["b"] = 5
    held[2].add(4)
    assert group.changed()
    assert [(found.module, saved) for found, saved in group.moved()] == [
        ("one", [("a", 1), ("b", 2)]),
        ("two", [(3, 3)]),
    ]
    assert group.held("one") == {id(held[0]): [("a", 1), ("b", 2)], id(held[1]): [(0, 1), (1, 2)]}


@pytest.mark.parametrize("other", [{"a": 1}, {"a": 1, "b": True, "c": 2}, {"a": 1, "b": 1}, {"a": 1, "b": "1"}, {}])
def test_a_dict_of_fewer_or_more_values_or_of_an_equal_one_is_another(other: dict[str, Any]) -> None:
    held: dict[str, Any] = {"a": 1, "b": True}
    group = Group({"one": [place(DictContainer(held), "one"), place(DictContainer({"d": [], "e": {}}), "one")]})
    assert not group.changed()
    held.clear()
    held.update(other)
    assert group.changed()
    held.clear()
    held.update({"a": 1, "b": True})
    assert not group.changed()


def test_what_is_of_another_class_is_another() -> None:
    class Kind:
        pass

    held = {"one": Kind(), "two": Kind()}
    group = Group({"": [place(ClassesContainer(held), "")]})
    assert not group.changed()
    held["two"].__class__ = type("Other", (Kind,), {})
    assert group.changed()


def test_what_a_module_leads_to_now_is_taken_in_the_place_of_what_it_led_to() -> None:
    first, second, other = {"a": 1}, [1], {"b": 2}
    group = Group({"one": [place(DictContainer(first), "one")], "two": [place(ListContainer(second), "two")]})
    first["a"] = 2
    group.take("one", [place(DictContainer(other), "one")])
    assert not group.changed()
    second.append(2)
    assert [found.module for found, _ in group.moved()] == ["two"]


def test_functions_of_a_namespace_are_looked_at_one_by_one_only_where_something_is_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, other = ModuleType("one"), ModuleType("other")
    vars(one).update(work=lambda: 1, number=1)
    vars(other).update(work=lambda: 2, number=2)
    group = Group({"": [place(FunctionsContainer(module), "") for module in (one, other)]})
    with monkeypatch.context() as patch:
        patch.setattr("partitioner.graph.container_group._are", lambda *_: pytest.fail("looked at one by one"))
        assert not group.changed()
    vars(one)["number"] = 3  # no function
    assert not group.changed()
    vars(other)["further"] = 4
    assert not group.changed()
    vars(other)["work"] = vars(one)["work"]
    assert group.changed()
