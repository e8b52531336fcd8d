"""Reachable: every container and tensor that a module's forward can get at besides its arguments.

The walk begins with the module and goes through attributes, parameters, buffers, hooks, plain objects such as attention
processors, and functions with what they close over. What holds the denoiser rather than being part of it (a pipeline, a
sampler, a Python module, a class) is not walked through: of it count the attributes that code of the user's, found on
the way, names. Of libraries' classes count the functions, which users replace.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import types
from collections import deque
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch import nn

from partitioner.graph.belonging import NOT_FOLLOWED, VALUES, is_foreign, is_outside, is_own
from partitioner.graph.containers import (
    AttributesContainer,
    CellContainer,
    ClassesContainer,
    Container,
    DictContainer,
    FoundContainer,
    FunctionsContainer,
    ListContainer,
    NamesContainer,
    ReadContainer,
    SetContainer,
    VariableContainer,
)
from partitioner.graph.torch_private.fakes import FakeTensor
from partitioner.graph.torch_private.hooks import hooks_of_all_modules

# Where libraries keep a setting that forwards read: module, class, attribute.
_SETTINGS = (("diffusers.models.attention_dispatch", "_AttentionBackendRegistry", "_active_backend"),)
_CACHED = type(functools.lru_cache(len))
# What a module keeps for backward passes and for saving and loading, which no forward reads.
NOT_READ = frozenset({
    "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook", "_non_persistent_buffers_set",
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
})  # fmt: skip
_REWRITTEN = ("__code__", "__defaults__", "__kwdefaults__")  # of a function, by who loads edited code, as autoreload
_DICTS_OF_MODULES = {
    "_parameters": "parameter", "_buffers": "buffer", "_modules": "submodule", "_forward_hooks": "forward hook",
    "_forward_pre_hooks": "forward pre-hook",
}  # fmt: skip


@dataclass
class Reachable:
    """What a walk from a module has found.

    Attributes:
        places: Every container, the modules' own first.
        tensors: Every tensor, each once.
        foreign: Where code of no known library takes part, in words; it may keep what no attribute shows.
        caches: Methods, and functions beside them, that keep what they returned (functools.lru_cache).
        modules: By path, and of those that are no submodules by description, the modules.
        sharing: Paths of modules that share with others, or with classes, an object that may be changed.
    """

    places: list[FoundContainer] = field(default_factory=list)
    tensors: list[torch.Tensor] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    caches: list[Any] = field(default_factory=list)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    sharing: set[str] = field(default_factory=set)
    _outside: list[tuple[Any, str, str]] = field(default_factory=list)  # what holds the denoiser
    _names: set[str] = field(default_factory=set)  # that code of no library reads
    # the objects too, so that no number is given away again; and by which module, and whether locally
    _seen: dict[int, tuple[Any, str, bool]] = field(default_factory=dict)
    _classes: dict[int, type] = field(default_factory=dict)  # those that were looked into
    _queue: deque[tuple[Any, str, str, bool]] = field(default_factory=deque)  # what is yet to be looked into
    _passed: dict[int, tuple[Any, str, bool]] = field(default_factory=dict)  # what no walk of one module looks into
    _is_local: bool = True  # whether what is found now is

    @classmethod
    def of(cls, module: nn.Module, ignored: frozenset[str] = frozenset()) -> Reachable:
        """Walk from a module. ignored: names of attributes of the module itself that do not count."""
        found = cls()
        modules = dict(module.named_modules())
        found._seen.update((id(child), (child, path, True)) for path, child in modules.items())
        for path, child in modules.items():
            found._module(child, path, "", ignored if child is module else frozenset())
        with found._beside():
            for hooks in hooks_of_all_modules():
                found._visit(hooks, "", "hook of all modules")
        found._walk()
        found._read_outside()
        found.places.append(FoundContainer(FunctionsContainer(nn.functional), "", "function torch.nn.functional."))
        for module_name, held, name in _SETTINGS:
            if hasattr(sys.modules.get(module_name), held):
                setting = AttributesContainer(getattr(sys.modules[module_name], held), [name])
                found.places.append(FoundContainer(setting, "", f"{module_name}.{held}."))
        found.places.append(FoundContainer(ClassesContainer(found.modules), "", "class of "))
        return found

    def again(self, path: str, submodules: Mapping[str, nn.Module], ignored: frozenset[str]) -> Reachable | None:
        """Walk from one module of an earlier walk alone, and take note of what is new.

        Args:
            path: Of the module.
            submodules: By path, all that ``of`` has started from; the same every time.
            ignored: Names of attributes of the module itself that do not count.

        Returns:
            What was found: of what is not local only what is new. None where only a walk from all modules tells.
        """
        found = Reachable(_classes=self._classes)
        if not self._passed:
            self._passed.update((key, seen) for key, seen in self._seen.items() if not seen[2])
            self._passed.update((id(child), (child, "", True)) for child in submodules.values())
        found._seen = dict(self._passed)
        found._module(submodules[path], path, "", ignored)
        found._walk()
        self._passed.update((key, seen) for key, seen in found._seen.items() if not seen[2])
        if any(self.modules.get(name) is not module for name, module in found.modules.items()):
            return None
        known = {id(value) for value, *_ in self._outside}
        new = [item for item in found._outside if id(item[0]) not in known]
        if new or (self._outside and found._names - self._names):
            found._names, found._outside = self._names | found._names, [*self._outside, *new]
            found._seen = {**self._seen, **found._seen}
            found._read_outside()
            self._names, self._outside = found._names, found._outside
        return found

    def _read_outside(self) -> None:
        """Of what is no part of the denoiser take what code that is part of it names."""
        before = -1
        while before != (before := len(self._seen)):
            with self._beside():
                for value, path, label in self._outside:
                    if not isinstance(value, (type, types.ModuleType)):  # of these, values that are replaced count only
                        self._all(self._named(value).items(), path, label + ".")
            self._walk()
        with self._beside():
            for value, path, label in self._outside:
                self._add(self._named(value), path, f"{label}.")

    def _walk(self) -> None:
        while self._queue:
            value, path, label, self._is_local = self._queue.popleft()
            self._look_into(value, path, label)
        self._is_local = True

    @contextlib.contextmanager
    def _beside(self) -> Iterator[None]:
        """What is found inside is found beside modules: in classes and Python modules."""
        before, self._is_local = self._is_local, False
        yield
        self._is_local = before

    def _add(self, container: Container, path: str, prefix: str, *, own: bool = False) -> None:
        self.places.append(FoundContainer(container, path, prefix, own, self._is_local))

    def _module(self, module: nn.Module, path: str, label: str, ignored: frozenset[str] = frozenset()) -> None:
        attributes = module.__dict__
        self.modules[f"{path or '<root>'}{label and '.' + label.rstrip('.')}"] = module
        self._add(DictContainer(attributes, ignored), path, f"attribute {label}", own=not label)
        for name, value in list(attributes.items()):
            if name in ignored:
                continue
            if name in _DICTS_OF_MODULES:
                self._add(DictContainer(value), path, f"{_DICTS_OF_MODULES[name]} {label}", own=True)
                for key, item in list(value.items()):
                    shown = _name_of(item) if callable(item) and "hook" in name else key
                    self._visit(item, path, f"{_DICTS_OF_MODULES[name]} {label}{shown}")
            elif name not in NOT_READ:
                self._visit(value, path, f"attribute {label}{name}")
        self._class(type(module), path, f"attribute {label}")

    def _visit(self, value: Any, path: str, label: str) -> None:
        if isinstance(value, VALUES):
            return
        if id(value) in self._seen:
            self._share(value, path)
            return
        self._seen[id(value)] = value, path, self._is_local
        self._queue.append((value, path, label, self._is_local))

    def _share(self, value: Any, path: str) -> None:
        """Take note of who else leads to something."""
        _, owner, local = self._seen[id(value)]
        if (owner, local) != (path, self._is_local) and not isinstance(value, (*NOT_FOLLOWED, torch.Tensor, nn.Module)):
            self.sharing |= {owner, path}

    def _look_into(self, value: Any, path: str, label: str) -> None:
        if isinstance(value, torch.Tensor):
            self.tensors.append(value)
            if value.__dict__ and not isinstance(value, FakeTensor):  # a Parameter may be given attributes
                self._object(value, path, label)
        elif isinstance(value, nn.Module):
            self._module(value, path, label + ".")
        elif isinstance(value, dict):
            self._add(DictContainer(value), path, f"{label}.")
            self._all(dict.items(value), path, label + ".")
        elif isinstance(value, (list, deque)):
            self._add(ListContainer(value), path, label)
            self._all(((f"[{index}]", item) for index, item in enumerate(value)), path, label)
        elif isinstance(value, (tuple, frozenset)):
            self._all(((f"[{index}]", item) for index, item in enumerate(value)), path, label)
        elif isinstance(value, set):
            self._add(SetContainer(value), path, label)
            self._all((("", item) for item in value), path, label)
        elif isinstance(value, types.FunctionType):
            self._function(value, path, label)
        elif isinstance(value, types.MethodType):
            self._visit(value.__self__, path, label)
            self._visit(value.__func__, path, label)
        elif isinstance(value, functools.partial):
            self._all(zip("fak", (value.func, value.args, value.keywords), strict=True), path, label)
        elif isinstance(value, ContextVar):
            self._add(VariableContainer(value), path, f"{label}: context variable ")
            self._all(VariableContainer(value).items(), path, f"{label}: context variable ")
        elif isinstance(value, numpy.ndarray):
            self._array(value)
        elif is_outside(value):
            self._outside.append((value, path, label))
        elif not isinstance(value, NOT_FOLLOWED) and not is_own(type(value).__module__):
            self._object(value, path, label)

    def _array(self, value: numpy.ndarray[Any, Any]) -> None:
        """An array counts as a tensor, where it can be one."""
        if value.flags.writeable:
            with contextlib.suppress(TypeError, ValueError):
                self.tensors.append(torch.from_numpy(value))

    def _named(self, value: Any) -> ReadContainer:
        """Of something that is no part of the denoiser, the attributes that are named by code that is."""
        held, kind = getattr(value, "__dict__", {}), type(value)
        is_read = (name for name in self._names if name in held or isinstance(getattr(kind, name, None), property))
        return ReadContainer(value, sorted(is_read))

    def _all(self, items: Any, path: str, label: str) -> None:
        for name, item in list(items):
            self._visit(item, path, f"{label}{name}")

    def _object(self, value: Any, path: str, label: str) -> None:
        """A plain object: its attributes, and its class's where that is no library's."""
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):
            self._add(DictContainer(attributes), path, f"{label}.")
            self._all(attributes.items(), path, label + ".")
        slots = [name for kind in type(value).__mro__ for name in _slots(kind)]
        if slots:
            container = AttributesContainer(value, slots)
            self._add(container, path, f"{label}.")
            self._all(container.items(), path, label + ".")
        self._class(type(value), path, label + ".")

    def _class(self, kind: type, path: str, label: str) -> None:
        """A class's attributes and the globals of its methods, where it is no library's."""
        before, self._is_local = self._is_local, False
        for base in kind.__mro__:
            if id(base) in self._classes:
                continue
            self._classes[id(base)] = base
            beside = vars(sys.modules[base.__module__]) if base.__module__ in sys.modules else {}
            self.caches += [item for item in (*vars(base).values(), *beside.values()) if isinstance(item, _CACHED)]
            if not is_foreign(base.__module__):
                if base not in (object, nn.Module):  # torch.export itself puts others into nn.Module
                    self._add(FunctionsContainer(base), path, f"{label}{base.__qualname__}.")
                continue
            self.foreign.append(f"class {base.__qualname__}, {label.rstrip('.')} of module {path or '<root>'}")
            container = AttributesContainer(base, None)
            self._add(container, path, f"{label}{base.__qualname__}.")
            for name, item in list(vars(base).items()):
                if not name.startswith("__") or isinstance(item, types.FunctionType):
                    self._visit(getattr(item, "__func__", item), path, f"{label}{base.__qualname__}.{name}")
        self._is_local = before

    def _function(self, function: types.FunctionType, path: str, label: str) -> None:
        if is_own(function.__module__ or ""):
            return
        names = function.__code__.co_freevars
        for name, cell in zip(names, function.__closure__ or (), strict=True):
            if id(cell) in self._seen:
                self._share(cell, path)
            else:
                self._seen[id(cell)] = cell, path, self._is_local
                container = CellContainer(cell, name)
                prefix = f"{label}: variable "
                self._add(container, path, prefix)
                self._all(container.items(), path, prefix)
        for held in (function.__defaults__, function.__kwdefaults__, function.__dict__):
            if held:
                self._visit(held, path, label)
        if is_foreign(function.__module__ or ""):
            self.foreign.append(f"{label} of module {path or '<root>'}")
            self._add(AttributesContainer(function, _REWRITTEN), path, f"{label}: ")
            named = _names_of(function.__code__)
            self._names |= named
            self._all(_imported(named - function.__globals__.keys()), path, f"{label}: module ")
            read = sorted(name for name in named if name in function.__globals__)
            if read:
                globals_read = NamesContainer(function.__globals__, read)
                with self._beside():
                    self._add(globals_read, path, f"{label}: global ")
                    self._all(globals_read.items(), path, f"{label}: global ")


def _name_of(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _slots(kind: type) -> tuple[str, ...]:
    """Names of the slots that a class of no library declares itself."""
    slots = kind.__dict__.get("__slots__", ()) if is_foreign(kind.__module__) else ()
    return tuple(n for n in ((slots,) if isinstance(slots, str) else slots) if n not in ("__dict__", "__weakref__"))


def _imported(names: set[str]) -> list[tuple[str, types.ModuleType]]:
    """Python modules that a function may import itself, by those of its names that are no globals."""
    found = ((name, sys.modules.get(name)) for name in sorted(names))
    return [(name, module) for name, module in found if isinstance(module, types.ModuleType)]


def _names_of(code: types.CodeType) -> set[str]:
    """Every global name that a function's code may read, that of functions defined in it included."""
    inner = (_names_of(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*inner)
