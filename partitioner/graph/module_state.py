"""ModuleState: a snapshot of all that a module's forward depends on besides its arguments.

It says fast whether anything is another now, and slowly what; and it can put everything back.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import nn

from partitioner.graph.containers import MISSING, DictContainer, FunctionsContainer, ListContainer
from partitioner.graph.reachable import FoundContainer, Reachable

_END = object()


@dataclass(frozen=True, slots=True)
class Difference:
    """One value that is another than in the snapshot.

    Attributes:
        module: Path of the module that it belongs to; empty for the denoiser itself.
        what: Which of its values, in words: "attribute b1", "forward hook 3".
        is_part: Whether it is a parameter, buffer or submodule that is another object, or is new or gone.
    """

    module: str
    what: str
    is_part: bool

    def __str__(self) -> str:
        return f"{self.what} of module {self.module or '<root>'}"


class ModuleState:
    """What a module's forward depended on besides its arguments when the snapshot was made.

    Tensors count by identity; whether their values have changed, TensorValues says. Anything else counts by value where
    it is a number, a string or a container of such, and by identity otherwise.

    >>> layer = torch.nn.Linear(2, 2)
    >>> state = ModuleState(layer)
    >>> state.changed()
    False
    >>> layer.in_features = 3
    >>> state.changed(), [str(difference) for difference in state.differences()]
    (True, ['attribute in_features of module <root>'])
    >>> state.restore()
    >>> layer.in_features
    2
    """

    def __init__(self, module: nn.Module, ignored: frozenset[str] = frozenset()) -> None:
        """Take the snapshot.

        Args:
            module: The denoiser.
            ignored: Names of attributes of the module itself that do not count.
        """
        found = Reachable.of(module, ignored)
        self.tensors: Sequence[torch.Tensor] = found.tensors
        self.foreign: Sequence[str] = found.foreign
        self._caches = found.caches
        self._places = found.places
        self._saved: list[list[tuple[Hashable, Any]]] = [list(place.container.items()) for place in found.places]
        self._dicts: list[dict[Any, Any]] = []
        self._empty: list[Any] = []
        self._lists: list[Any] = []
        self._others: list[tuple[FoundContainer, list[tuple[Hashable, Any]]]] = []
        # whose functions count, and all that is there
        self._namespaces: list[tuple[FoundContainer, list[tuple[Hashable, Any]], Mapping[str, Any], list[Any]]] = []
        values: list[Any] = []
        items: list[Any] = []
        for place, saved in zip(found.places, self._saved, strict=True):
            container = place.container
            if isinstance(container, DictContainer) and not container.ignored:
                (self._dicts if saved else self._empty).append(container.held)
                values += [value for _, value in saved]
            elif isinstance(container, ListContainer):
                (self._lists if saved else self._empty).append(container.held)
                items += [value for _, value in saved]
            elif isinstance(container, FunctionsContainer):
                namespace = vars(container.held)
                self._namespaces.append((place, saved, namespace, list(namespace.values())))
            else:
                self._others.append((place, saved))
        # something to end with, so that values that have become more are not taken for the same
        self._dicts.append({"": _END})
        self._lists.append([_END])
        self._values = [*values, _END]
        self._items = [*items, _END]

    def changed(self) -> bool:
        """Whether anything is another object than in the snapshot; made for being asked at every call.

        It may be so where ``differences`` finds nothing: an equal number is no difference.
        """
        return (
            any(self._empty)
            or not all(map(is_, chain.from_iterable(map(dict.values, self._dicts)), self._values))
            or not all(map(is_, chain.from_iterable(self._lists), self._items))
            or any(_differ(saved, list(place.container.items())) for place, saved in self._others)
            or any(
                not _are(namespace.values(), values) and _differ(saved, list(place.container.items()))
                for place, saved, namespace, values in self._namespaces
            )
        )

    def differences(self) -> list[Difference]:
        """What differs, in the order of the modules."""
        found = []
        for place, saved in zip(self._places, self._saved, strict=True):
            now, before = dict(place.container.items()), dict(saved)
            for name in {**before, **now}:
                if not same(before.get(name, MISSING), now.get(name, MISSING)):
                    found.append(Difference(place.module, place.describe(name), place.is_part))
        return found

    def bring_to(self, device: torch.device) -> None:
        """Until ``restore``, have copies on a device in the place of tensors on others, but for parts of modules.

        Those are moved by whoever moves a module; what lies beside them may have stayed where a forward took it.
        """
        for place, saved in zip(self._places, self._saved, strict=True):
            if place.is_part:
                continue
            brought = [(name, _on(device, value)) for name, value in saved]
            if _differ(saved, brought):
                place.container.put_back(brought)

    def restore(self) -> None:
        """Put every container's values back, and empty caches of methods; what tensors hold stays as it is."""
        for cache in self._caches:
            cache.cache_clear()
        for place, saved in zip(self._places, self._saved, strict=True):
            if _differ(saved, list(place.container.items())):
                place.container.put_back(saved)


def same(one: Any, other: Any) -> bool:
    """Whether two values are one object, equal numbers or strings, or containers of such.

    >>> same([1, ("a", None)], [1, ("a", None)]), same(1, 1.0), same(float("nan"), float("nan"))
    (True, False, True)
    """
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(map(same, one.values(), other.values()))
    if isinstance(one, (bool, int, float, complex, str, bytes, set, frozenset, torch.dtype, torch.device)):
        return bool(one == other) or (one != one and other != other)
    return False


def _on(device: torch.device, value: Any) -> Any:
    """The value, or where it is or holds a tensor on another device, a copy; lists and dicts are looked at apart."""
    if isinstance(value, torch.Tensor):
        return value.to(device) if value.device != device and not value.is_meta else value
    if type(value) is tuple:
        moved = tuple(_on(device, item) for item in value)
        return value if all(map(is_, value, moved)) else moved
    return value


def _are(now: Collection[Any], values: Sequence[Any]) -> bool:
    """Whether they are the very same objects, in order: looked at in C."""
    return len(now) == len(values) and all(map(is_, now, values))


def _differ(saved: Sequence[tuple[Hashable, Any]], now: Sequence[tuple[Hashable, Any]]) -> bool:
    return len(saved) != len(now) or any(a is not b or key != name for (key, a), (name, b) in zip(saved, now))  # noqa: B905
