"""ModuleState: a snapshot of all that a module's forward depends on besides its arguments.

It says fast whether anything is another now, and slowly what; and it can put everything back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

import torch
from torch import nn

from partitioner.graph.container_group import PLAIN, Group, Items, differ
from partitioner.graph.containers import MISSING, Container, FoundContainer
from partitioner.graph.module_form import ModuleForm
from partitioner.graph.reachable import Reachable

_DATA = (bool, int, float, complex, str, bytes, torch.dtype, torch.device)
_CHUNK = 32  # modules, whose containers are looked at together
_MOST_PLACES = 10_000  # of one module


@dataclass(frozen=True, slots=True)
class Difference:
    """One value that is another than in the snapshot.

    Attributes:
        module: Path of the module that it belongs to; empty for the denoiser itself.
        what: Which of its values, in words: "attribute b1", "forward hook 3".
        is_part: Whether it is a parameter, buffer, submodule or hook that is another object, or is new or gone.
    """

    module: str
    what: str
    is_part: bool

    def __str__(self) -> str:
        return f"{self.what} of module {self.module or '<root>'}"


class ModuleState:
    """What a module's forward depended on besides its arguments when the snapshot was made.

    Attributes:
        tensors: All that it can get at.
        foreign: Where code of no known library takes part, in words.
        forms: By path, of the modules that ``follow`` has taken anew.
        former: What their forms were in the snapshot.

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
        self._found = Reachable.of(module, ignored)
        self._ignored = ignored
        self._submodules = dict(module.named_modules())
        self._submodule_ids = frozenset(map(id, self._submodules.values()))
        self.tensors: Sequence[torch.Tensor] = self._found.tensors
        self.foreign: Sequence[str] = self._found.foreign
        self.forms: dict[str, ModuleForm] = {}
        self.former: dict[str, ModuleForm] = {}
        self._tensor_ids = frozenset(map(id, self.tensors))
        local: dict[str, list[FoundContainer]] = {path: [] for path in self._submodules}
        beside: list[FoundContainer] = []
        for place in self._found.places:
            (local[place.module] if place.is_local else beside).append(place)
        paths = list(local)
        chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
        self._groups = [Group({path: local[path] for path in chunk}) for chunk in chunks]
        self._group_of = {path: group for group, chunk in zip(self._groups, chunks, strict=True) for path in chunk}
        self._beside = Group({"": beside})  # what is beside modules

    def changed(self) -> bool:
        """Whether anything is another object than in the snapshot; made for being asked at every call.

        It may be so where ``differences`` finds nothing: an equal number is no difference.
        """
        return any(group.changed() for group in (*self._groups, self._beside))

    def differences(self) -> list[Difference]:
        """What differs, in the order of the modules."""
        return [found for place, saved in self._all_saved() for found in _differences_in(place, saved)]

    def follow(self) -> list[Difference] | None:
        """Take the modules anew of which attributes or hooks are others, and nothing else: in a fraction of the time.

        Returns:
            What differed. None where more than that is another, or may be: then only a new snapshot tells.
        """
        moved = [item for group in self._groups if group.changed() for item in group.moved()]
        if self._beside.changed() or any(_is_of_another_make(place) for place, _ in moved):
            return None
        found: dict[str, Reachable] = {}
        for path in dict.fromkeys(place.module for place, _ in moved):
            again = self._found.again(path, self._submodules, self._ignored if path == "" else frozenset())
            is_much = len(self._group_of[path].places[path]) > _MOST_PLACES
            if again is None or is_much or not self._tensor_ids.issuperset(map(id, again.tensors)):
                return None
            found[path] = again
        differences = [each for place, saved in moved for each in _differences_in(place, saved)]
        for path, again in found.items():
            if path not in self.former:
                self.former[path] = self._form(path, self._group_of[path].held(path))
            self._take_again(path, again)
            self.forms[path] = self._form(path)
        return differences

    def _form(self, path: str, held: Mapping[int, Items] | None = None) -> ModuleForm:
        ignored = self._ignored if path == "" else frozenset()
        return ModuleForm(self._submodules[path], ignored, self._submodule_ids, held)

    def _take_again(self, path: str, again: Reachable) -> None:
        """Have what one module leads to now in the place of what it led to."""
        local = [place for place in again.places if place.is_local]
        group = self._group_of[path]
        if path in self._found.sharing:  # what others lead to as well, by this module alone
            now = {id(place.container.held) for place in local}
            local += [place for place in group.places[path] if id(place.container.held) not in now]
        group.take(path, local)
        beside = {_key_of(place.container): place for place in again.places if not place.is_local}
        known = set(map(_key_of, (place.container for place in self._beside.places[""]))) if beside else set()
        if beside.keys() - known:
            new = [place for key, place in beside.items() if key not in known]
            self._beside.take("", [*self._beside.places[""], *new])
        self._found.caches += again.caches

    def bring_to(self, device: torch.device) -> None:
        """Until ``restore``, have copies on a device in the place of tensors on others, but for parts of modules.

        Those are moved by whoever moves a module; what lies beside them may have stayed where a forward took it.
        """
        for place, saved in self._all_saved():
            if place.is_part:
                continue
            brought = [(name, _on(device, value)) for name, value in saved]
            if differ(saved, brought):
                place.container.put_back(brought)

    def restore(self) -> None:
        """Put every container's values back, and empty caches of methods; what tensors hold stays as it is."""
        for cache in self._found.caches:
            cache.cache_clear()
        for place, saved in self._all_saved():
            if differ(saved, list(place.container.items())):
                place.container.put_back(saved)

    def _all_saved(self) -> Iterator[tuple[FoundContainer, Items]]:
        for group in (*self._groups, self._beside):
            yield from group.all()


def _key_of(container: Container) -> tuple[object, ...]:
    return type(container), id(container.held), *(getattr(container, "names", None) or ())


def _differences_in(place: FoundContainer, saved: Items) -> Iterator[Difference]:
    now, before = dict(place.container.items()), dict(saved)
    for name in {**before, **now}:
        one, other = before.get(name, MISSING), now.get(name, MISSING)
        if not same(one, other):
            yield Difference(place.module, place.describe(name), place.is_part)


def _is_of_another_make(place: FoundContainer) -> bool:
    """Whether what is another is a module's parameter, buffer or submodule, or shows in no form."""
    return place.prefix.startswith(("parameter", "buffer", "submodule")) or not isinstance(place.container, PLAIN)


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
    if isinstance(one, (*_DATA, set, frozenset)):
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
