"""The denoiser of a pipeline: which it is, and how an engine takes over its ``forward`` and nothing else.

The denoiser stays where it is, with its class, parameters and hooks; ``nn.Module.__call__`` runs the hooks around the
engine as it runs them around the denoiser's own forward.
"""

from __future__ import annotations

import copy
import functools
import logging
import typing
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import nn

from partitioner.graph.arguments import bind_arguments
from partitioner.graph.torch_private.compiled import compiled_call_set_aside, uncompiled
from partitioner.graph.torch_private.hooks import without_own_hooks
from partitioner.graph.torch_private.under_way import under_a_transform
from runtime.engine import Engine
from runtime.engine_calls import EngineCalls
from runtime.errors import InputError

DENOISER_NAMES = ("unet", "transformer")
Computing = Engine | EngineCalls  # what computes a denoiser's calls

logger = logging.getLogger("runtime")


def may_be_denoisers(pipe: Any) -> list[str]:
    """The names of a pipeline's modules that are called as most pipelines call their denoiser."""
    return [name for name in DENOISER_NAMES if isinstance(getattr(pipe, name, None), nn.Module)]


def denoiser_name(pipe: Any, class_name: str | None = None) -> str:
    """The name of the attribute that holds a pipeline's denoiser: "unet" or "transformer", or another's.

    Args:
        pipe: the pipeline.
        class_name: of the denoiser, by which it is known where the pipeline calls it otherwise.

    Raises:
        InputError: the pipeline has no denoiser or two.

    >>> from types import SimpleNamespace
    >>> denoiser_name(SimpleNamespace(unet=torch.nn.Identity()))
    'unet'
    >>> denoiser_name(SimpleNamespace(prior=torch.nn.Identity()), "Identity")
    'prior'
    """
    names = may_be_denoisers(pipe)
    if not names:
        names = [
            name
            for name, module in getattr(pipe, "__dict__", {}).items()
            if isinstance(module, nn.Module) and type(uncompiled(module)).__name__ == class_name
        ][:1]  # others of its class are second denoisers
    if len(names) != 1:
        found = " and ".join(names) or "neither"
        raise InputError(
            f"a {type(pipe).__name__} has {found}; expected a diffusers pipeline with one denoiser, as "
            f"{' or '.join(DENOISER_NAMES)}"
        )
    return names[0]


def check_free(pipe: Any, name: str) -> None:
    """Check that an attribute of a pipeline holds a denoiser that no engine computes for.

    Raises:
        InputError: it holds no module, or an engine computes for it already.
    """
    module = getattr(pipe, name, None)
    if not isinstance(module, nn.Module):
        raise InputError(f"a plan is given for {name}, and this {type(pipe).__name__} has no such module")
    forward = vars(uncompiled(module)).get("forward")
    if getattr(forward, "engine", None) is not None:
        raise InputError(_TAKEN)


_TAKEN = (
    "this pipeline's denoiser is already inside a parallelize block, which another thread, or one for another pipeline "
    "of its parts, may have entered or be about to enter; leave that first. Its engine serves all of them"
)
_claims: dict[int, object] = {}  # by the id of a denoiser


@contextmanager
def claimed(denoiser: nn.Module) -> Iterator[None]:
    """Inside the block no other such block for this denoiser can be entered, in whichever thread.

    Raises:
        InputError: there is one.
    """
    claim = object()
    if _claims.setdefault(id(denoiser), claim) is not claim:
        raise InputError(_TAKEN)
    try:
        yield
    finally:
        _claims.pop(id(denoiser), None)  # unless this module has been loaded again meanwhile


@contextmanager
def plain_denoiser(pipe: Any, name: str) -> Iterator[nn.Module]:
    """Inside the block the pipeline has its denoiser without the wrapper of torch.compile; afterwards with it.

    Yields:
        The denoiser itself.
    """
    held = getattr(pipe, name)
    plain = uncompiled(held)
    if plain is not held:
        setattr(pipe, name, plain)
    try:
        yield plain
    finally:
        now = getattr(pipe, name, None)
        if now is plain and plain is not held:
            setattr(pipe, name, held)
        elif not isinstance(now, nn.Module) or uncompiled(now) is not plain:
            logger.warning(
                f"the pipeline's {name} was replaced inside the parallelize block, and stays so: calls of the new one "
                "did not go through the engine. Put it in before the block"
            )


class _MethodInstead:
    """Stands for a method on an instance. Deep copies and pickles of the instance have the method itself."""

    def __init__(self, owner: nn.Module, name: str) -> None:
        self._owner = owner
        self._name = name
        self._before = vars(owner).get(name)  # what somebody else has put on the instance
        self.engine: Computing | None = None  # while it computes
        functools.update_wrapper(cast(Any, self), getattr(owner, name))  # for those who read its signature

    @property
    def original(self) -> Callable[..., Any]:
        """The method without the engine."""
        method: Callable[..., Any] = self._before or getattr(type(self._owner), self._name).__get__(self._owner)
        return method

    @contextmanager
    def in_place(self, engine: Computing) -> Iterator[None]:
        """Stand for the method inside the block, unless somebody replaces this in turn, which then stays."""
        self.engine = engine
        setattr(self._owner, self._name, self)
        try:
            yield
        finally:
            self.engine = None
            now = vars(self._owner).get(self._name)
            if now is self:
                self.remove_from(self._owner)
            elif not _leads_to(now, self):
                logger.warning(
                    f"{type(self._owner).__name__}.{self._name} was replaced inside the parallelize block, and stays "
                    "so: calls from then on did not go through the engine. Replace it before the block"
                )

    def remove_from(self, module: nn.Module) -> None:
        """Have a module, the owner or a shallow copy of it, as it was before."""
        if self._before is None:
            vars(module).pop(self._name, None)
        else:
            setattr(module, self._name, self._before)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self._owner) not in memo:  # no copy of the owner is being made
            return self
        if self._before is not None:
            return copy.deepcopy(self._before, memo)
        made = memo[id(self._owner)]
        return getattr(type(made), self._name).__get__(made)

    def __reduce__(self) -> tuple[Any, ...]:
        return (getattr, (self._owner, self._name)) if self._before is None else (_itself, (self._before,))


class EngineForward(_MethodInstead):
    """Stands for a denoiser's ``forward``: an engine computes; once that has ended, the denoiser itself."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__(denoiser, "forward")
        self._output_class = _output_class(denoiser)
        # a user may compile the denoiser
        self._compute = torch.compiler.disable(self._compute_by_engine)  # type: ignore[no-untyped-call]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Make one denoiser call; arguments and result are the denoiser's own, return_dict included."""
        return self.original(*args, **kwargs) if self.engine is None else self._compute(self.engine, args, kwargs)

    def _compute_by_engine(self, engine: Computing, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            raise InputError(
                "an input of this denoiser call requires gradients, which an engine does not compute: make the call "
                "under torch.no_grad(), or outside of the parallelize block"
            )
        if under_a_transform():
            raise InputError(
                "this denoiser call is made inside of a transform of torch.func (vmap, jvp, grad) or of forward-mode "
                "gradients, which an engine does not follow: make the call outside of it, or of the parallelize block"
            )
        output = engine(*args, **kwargs)
        by_name = bind_arguments(self._owner, args, kwargs).get("return_dict", True)
        return self._output_class(*output) if by_name and self._output_class is not None else output


class EngineContext(_MethodInstead):
    """Stands for a denoiser's ``cache_context``: what is called inside belongs to one of diffusers' cache contexts."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__(denoiser, "cache_context")
        with self.original(""):
            pass  # the first one to be entered leaves a registry of hooks on the denoiser, which is no change later

    @contextmanager
    def __call__(self, name: str, **details: Any) -> Iterator[None]:
        """Enter the denoiser's own context and the engine's: contexts do not see each other's messages."""
        engine = self.engine
        with self.original(name, **details):
            before = engine.in_context(name) if engine is not None else ""
            try:
                yield
            finally:
                if engine is not None:
                    engine.in_context(before)


class Takeover:
    """The methods of a denoiser that an engine is to take over."""

    def __init__(self, denoiser: nn.Module) -> None:
        self._denoiser = denoiser
        self._forward = EngineForward(denoiser)
        self._methods: list[_MethodInstead] = [self._forward]
        if hasattr(denoiser, "cache_context"):
            self._methods.append(EngineContext(denoiser))

    def bare(self) -> nn.Module:
        """The denoiser as the engine is to trace it: without its own hooks, which run around the engine anyway."""
        made = without_own_hooks(self._denoiser)
        for method in self._methods:
            method.remove_from(made)
        return made

    @contextmanager
    def by(self, engine: Computing) -> Iterator[None]:
        """Have the engine compute the denoiser's calls inside the block; afterwards the denoiser is as it was.

        What somebody puts around the methods inside the block stays, and works.
        """
        with compiled_call_set_aside(self._denoiser), ExitStack() as stack:
            for method in self._methods:
                stack.enter_context(method.in_place(engine))
            yield


def _itself(value: Any) -> Any:
    return value


def _leads_to(method: Any, wanted: Any) -> bool:
    """Whether a method is ``wanted`` or, as functools.wraps notes it, wraps it."""
    while method is not None and method is not wanted:
        method = getattr(method, "__wrapped__", None)
    return method is wanted


def _output_class(denoiser: nn.Module) -> type | None:
    """The output class that the denoiser's forward names as its return type, or None."""
    try:
        hint = typing.get_type_hints(type(denoiser).forward).get("return")
    except (NameError, TypeError):
        return None
    choices = typing.get_args(hint) or (hint,)
    return next((c for c in choices if isinstance(c, type) and hasattr(c, "__dataclass_fields__")), None)
