"""direct_trace: what torch.export would give, in less than half of its time.

torch.export makes a proxy of every tensor and describes every step for people. Of all that a TracedGraph needs the
operators, as they are called, and who called them: these are written down here as they come, in a graph of the same
form. Anything out of the ordinary (a tensor that is no parameter, buffer or result; autocast; an error) ends it with
NotDirect, and torch.export is asked, whose graph and errors count. Tests hold both graphs equal, operator by operator.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ArgumentSpec,
    ConstantArgument,
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.func import functional_call
from torch.utils.weak import WeakTensorKeyDictionary

from partitioner.errors import TraceError
from partitioner.graph.tensor_meta import meta_of
from partitioner.graph.torch_private.call_recorder import calls_recorded
from partitioner.graph.torch_private.fakes import FakeTensor
from partitioner.graph.torch_private.schemas import OpOverload
from partitioner.graph.torch_private.trees import TreeSpec, tree_flatten
from partitioner.graph.trace_limits import check_nodes
from partitioner.process import raise_interrupt_behind


class NotDirect(Exception):
    """The denoiser does something that only torch.export can trace, or refuse."""


@dataclass(frozen=True)
class ProgramForm:
    """The forms of what goes into a call and of what comes out, as in an ExportedProgram."""

    in_spec: TreeSpec
    out_spec: TreeSpec


@dataclass(frozen=True)
class DirectProgram:
    """The part of an ExportedProgram that is read."""

    graph: fx.Graph
    graph_signature: ExportGraphSignature
    call_spec: ProgramForm
    constants: Mapping[str, Any]


TraceProgram = ExportedProgram | DirectProgram


def direct_trace(module: nn.Module, arguments: Mapping[str, Any], where: Callable[[], str]) -> DirectProgram:
    """Trace ``module(**arguments)`` in fake mode, which is that of its weights where they have no memory.

    Args:
        module: The denoiser, in eval mode.
        arguments: Its arguments; tensors in them, and weights of the module, may be real.
        where: Gives the path of the module whose forward is running.

    Raises:
        NotDirect: It cannot be traced this way.
        TraceError: Its graph is of absurd size.
    """
    recorder = _Recorder(where)
    fakes: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for kind, tensors in (
        (InputKind.PARAMETER, module.named_parameters(remove_duplicate=False)),
        (InputKind.BUFFER, module.named_buffers(remove_duplicate=False)),
    ):
        for path, tensor in tensors:
            if id(tensor) in seen:
                raise NotDirect(f"{path} is there twice")
            seen.add(id(tensor))
            if not isinstance(tensor, FakeTensor):
                tensor = fakes[path] = _fake_weight(tensor)
            recorder.weight(kind, path, tensor)
    leaves, in_spec = tree_flatten(((), dict(arguments)))
    _, given = in_spec.unflatten([recorder.argument(leaf) for leaf in leaves])
    try:
        with calls_recorded(recorder.call), _no_autocast():
            made = functional_call(module, fakes, (), given) if fakes else module(**given)
    except TraceError:  # not even torch.export may go on
        raise
    except Exception as error:
        raise_interrupt_behind(error)
        raise NotDirect(str(error)) from error
    results, out_spec = tree_flatten(made)
    return recorder.program(results, ProgramForm(in_spec, out_spec))


@contextmanager
def _no_autocast() -> Iterator[None]:
    """Inside the block, torch.autocast ends the trace: its casts are no operators of the graph."""
    before, tracer = torch.autocast.__enter__, get_ident()

    def refuse(self: Any) -> Any:
        if get_ident() != tracer:
            return before(self)  # type: ignore[no-untyped-call]
        raise NotDirect("autocast")

    torch.autocast.__enter__ = refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autocast.__enter__ = before  # type: ignore[method-assign]


def _fake(tensor: torch.Tensor) -> torch.Tensor:
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    if not isinstance(made, FakeTensor):
        raise NotDirect("in no fake mode")
    return made


def _fake_weight(weight: torch.Tensor) -> torch.Tensor:
    fake = _fake(weight)
    return nn.Parameter(fake, weight.requires_grad) if isinstance(weight, nn.Parameter) else fake


class _Recorder:
    """Writes a graph down."""

    def __init__(self, where: Callable[[], str]) -> None:
        self.graph = fx.Graph()
        # what made a tensor; a reference to one that an operator makes would have its caller copy it
        self.nodes: MutableMapping[torch.Tensor, fx.Node] = WeakTensorKeyDictionary()
        self._where = where
        self._inputs: list[InputSpec] = []

    def weight(self, kind: InputKind, path: str, tensor: torch.Tensor) -> None:
        """Note a parameter or buffer."""
        prefix = "p_" if kind is InputKind.PARAMETER else "b_"
        name = prefix + re.sub(r"[^a-zA-Z0-9]", "_", path).lower()
        node = self._placeholder(name, tensor, kind, path, True if kind is InputKind.BUFFER else None)
        node.meta["requires_grad"] = tensor.requires_grad

    def argument(self, value: Any) -> Any:
        """Note an argument; returns what the call is given for it."""
        if isinstance(value, torch.Tensor):
            fake = _fake(value)
            self._placeholder("argument", fake, InputKind.USER_INPUT)
            return fake
        node = self.graph.placeholder("literal")
        node.meta["val"] = value
        self._inputs.append(InputSpec(InputKind.USER_INPUT, ConstantArgument(node.name, value), None))
        return value

    def _placeholder(
        self, name: str, tensor: torch.Tensor, kind: InputKind, path: str | None = None, persistent: bool | None = None
    ) -> fx.Node:
        node = self.graph.placeholder(name)
        self._made(node, tensor)
        self._inputs.append(InputSpec(kind, TensorArgument(node.name), path, persistent))
        return node

    def call(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note an operator's call; returns what it gives."""
        if torch.Tag.inplace_view in func.tags:
            raise NotDirect(f"{func} changes the shape of a tensor in place")
        check_nodes(len(self.graph.nodes))
        args_, kwargs_ = tuple(self._named(args)), {key: self._named(value) for key, value in kwargs.items()}
        made = func(*args, **kwargs)
        node = self.graph.create_node(
            "call_function", func, args_, kwargs_, name=func.overloadpacket.__name__.strip("_")
        )
        if isinstance(made, torch.Tensor):
            self._made(node, made)
        elif isinstance(made, (list, tuple)) and all(isinstance(item, torch.Tensor) for item in made):
            node.meta["val"] = [meta_of(item) for item in made]
            for position, item in enumerate(made):
                part = self.graph.create_node("call_function", operator.getitem, (node, position), {})
                self._made(part, item)
                part.meta["nn_module_stack"] = {"": (self._where(), None)}
        else:
            raise NotDirect(f"{func} makes a {type(made).__name__}")
        node.meta["nn_module_stack"] = {"": (self._where(), None)}
        return made

    def _made(self, node: fx.Node, tensor: torch.Tensor) -> None:
        node.meta["val"] = meta_of(tensor)
        self.nodes[tensor] = node

    def _named(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            node = self.nodes.get(value)
            if node is None:
                raise NotDirect("a tensor that is neither parameter nor buffer")
            return node
        if isinstance(value, (list, tuple)):
            return [self._named(item) for item in value]
        return value

    def program(self, results: list[Any], call_spec: ProgramForm) -> DirectProgram:
        """What was written down. results: of the call."""
        outputs = []
        for value in results:
            if isinstance(value, torch.Tensor):
                outputs.append(self._named(value))
            elif value is None or isinstance(value, (bool, int, float, str)):
                outputs.append(value)
            else:
                raise NotDirect(f"the call returns a {type(value).__name__}")
        self.graph.output(tuple(outputs))
        given: list[ArgumentSpec] = [
            TensorArgument(value.name) if isinstance(value, fx.Node) else ConstantArgument("", value)
            for value in outputs
        ]
        signature = ExportGraphSignature(
            self._inputs, [OutputSpec(OutputKind.USER_OUTPUT, argument, None) for argument in given]
        )
        return DirectProgram(self.graph, signature, call_spec, {})
