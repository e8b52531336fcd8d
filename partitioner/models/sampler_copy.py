"""Copies of schedulers to be stepped, which share nothing with their owner's that a step may write to.

A step that somebody has wrapped or written may keep something elsewhere: in its closure (a counter, a list of the
latents so far, a generator of random numbers), in a global variable, in the object whose method it is, in its class. So
the copy's functions are copies, too, with variables of their own; these hold copies of containers, generators and plain
objects. All else, such as modules and classes, is shared, and diffusers' own functions are what they are.
"""

from __future__ import annotations

import copy
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy
import torch
from torch import nn

_CONTAINERS = (list, dict, set, bytearray, deque, OrderedDict, defaultdict, Counter)  # themselves, no subclasses
_GENERATORS = (random.Random, numpy.random.Generator, numpy.random.RandomState)
_ALIKE = (int, float, complex, str, bytes, bool, type(None), tuple, frozenset)  # nothing is written to these


def copied(scheduler: Any) -> Any:
    """A scheduler as it is now, to be stepped.

    >>> from diffusers import DDIMScheduler
    >>> scheduler, calls = DDIMScheduler(), []
    >>> inner = scheduler.step
    >>> scheduler.step = lambda *args: calls.append(args) or inner(*args)
    >>> scheduler.set_timesteps(10)
    >>> _ = copied(scheduler).step(torch.ones(1), 901, torch.ones(1))
    >>> calls
    []
    """
    kind, held = own_class(type(scheduler)), getattr(scheduler, "__dict__", {})
    if kind is type(scheduler) and not any(map(_is_function, held.values())):
        return copy.deepcopy(scheduler)
    made: Any = object.__new__(kind)
    copies, memo = _Copies({id(scheduler): made}), {id(scheduler): made}
    for name, value in held.items():
        vars(made)[name] = copies.of(value) if _is_function(value) else copy.deepcopy(value, memo)
    return made


def own_class(kind: type) -> Any:
    """A class that does the same, of which functions and containers are copies; one of diffusers itself."""
    copies, held = _Copies(), dict[str, Any]()
    for base in reversed(kind.__mro__):
        for name, value in vars(base).items():
            if name.startswith("__"):
                continue
            held.pop(name, None)
            is_own = not _is_known(base.__module__) and type(value) in _CONTAINERS
            if is_own or (isinstance(value, FunctionType) and copies.of(value) is not value):
                held[name] = copies.of(value)
    return type(kind.__name__, (kind,), {**held, "__module__": kind.__module__}) if held else kind


@dataclass
class _Copies:
    """What was copied: the copies by the id of what they are of, which ``kept`` keeps alive."""

    made: dict[int, Any] = field(default_factory=dict)
    kept: list[Any] = field(default_factory=list)

    def of(self, value: Any, *, deep: bool = True) -> Any:
        """A copy. deep: whether an object's attributes are copies, too, and not only what it holds of them."""
        if isinstance(value, _ALIKE):
            return value
        if id(value) not in self.made:
            self.kept.append(value)
            self.made[id(value)] = value  # for whatever comes back to it
            self.made[id(value)] = self._copy(value, deep)
        return self.made[id(value)]

    def _copy(self, value: Any, deep: bool) -> Any:
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, MethodType):
            return MethodType(self.of(value.__func__), self.of(value.__self__))
        if isinstance(value, partial):
            given = {name: self.of(item) for name, item in value.keywords.items()}
            return partial(self.of(value.func), *map(self.of, value.args), **given)
        if type(value) in _CONTAINERS:
            return self._container(value)
        if isinstance(value, torch.Generator):
            return value.clone_state()
        if isinstance(value, torch.Tensor):
            return value.detach().clone()
        if isinstance(value, _GENERATORS):
            return copy.deepcopy(value)
        if not (deep and _is_plain(value)):
            return value
        try:
            made = object.__new__(type(value))
        except TypeError:  # it is more than its attributes
            return value
        self.made[id(value)] = made
        vars(made).update({name: self.of(item, deep=False) for name, item in vars(value).items()})
        return made

    def _container(self, value: Any) -> Any:
        made = copy.copy(value)
        self.made[id(value)] = made
        if isinstance(made, dict):
            made.update({key: self.of(item, deep=False) for key, item in value.items()})
        elif isinstance(made, (list, deque)):
            for place, item in enumerate(value):
                made[place] = self.of(item, deep=False)
        return made

    def _function(self, function: FunctionType) -> FunctionType:
        """The same code with variables of its own, those of its closure and the global ones that it names."""
        variables = function.__globals__
        if _is_known(str(variables.get("__name__"))):
            return function
        if id(variables) not in self.made:
            self.kept.append(variables)
            self.made[id(variables)] = dict(variables)
        own = self.made[id(variables)]
        closure = function.__closure__ or ()
        new = [cell for cell in closure if id(cell) not in self.made]
        self.kept += new
        self.made |= {id(cell): CellType() for cell in new}  # other functions may share them
        cells = tuple(self.made[id(cell)] for cell in closure)
        made = FunctionType(function.__code__, own, function.__name__, function.__defaults__, cells)
        self.made[id(function)] = made
        made.__kwdefaults__ = function.__kwdefaults__
        for cell in new:
            try:
                self.made[id(cell)].cell_contents = self.of(cell.cell_contents)
            except ValueError:  # nothing was put into it yet
                continue
        for name in _names(function.__code__):
            held = variables.get(name)
            if held is None:
                continue
            if not isinstance(held, FunctionType) or held.__globals__ is variables:
                own[name] = self.of(held)
        return made


def _is_function(value: Any) -> bool:
    return isinstance(value, (FunctionType, MethodType, partial))


def _is_plain(value: Any) -> bool:
    """Whether an object is what its attributes are, and nothing that others know or that must be closed."""
    if isinstance(value, (type, ModuleType, nn.Module)) or hasattr(type(value), "__del__"):
        return False
    return hasattr(value, "__dict__")


def _is_known(module: str) -> bool:
    """Whether functions of a module keep nothing."""
    return module.split(".")[0] in ("diffusers", "builtins")


def _names(code: CodeType) -> Iterator[str]:
    """What a function and those within it call by name."""
    yield from code.co_names
    for item in code.co_consts:
        if isinstance(item, CodeType):
            yield from _names(item)
