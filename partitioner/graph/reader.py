"""ExportReader: from torch.export's ExportedProgram to a TracedGraph."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch.export.graph_signature import InputKind, OutputKind

from partitioner.errors import TraceError
from partitioner.graph.arguments import FlatArguments, flatten_arguments
from partitioner.graph.constants import MAX_CONSTANT_BYTES, number_in, tensor_data
from partitioner.graph.direct_trace import TraceProgram
from partitioner.graph.ir import TracedGraph
from partitioner.graph.modules import caller, calling_module
from partitioner.graph.nesting import OutputForm, output_form
from partitioner.graph.nodes import CONSTANT, Argument, Input, Node, Parameter, Ref, Role, Symbol, TensorMeta
from partitioner.graph.storages import Storages, find_storages
from partitioner.graph.tensor_meta import meta_of
from partitioner.graph.torch_private.schemas import OpOverload, draws_random_numbers
from partitioner.graph.torch_private.trees import tree_unflatten
from partitioner.graph.trace_failure import UNKNOWN_VALUES

# Operators that check or mark and compute nothing.
_DROPPED = {"aten._assert_tensor_metadata.default", "aten._assert_async.msg", "aten.sym_constrain_range.default"}
# Operators that return their first argument itself, in eval mode or as exported.
_IDENTITIES = {"aten.dropout.default", "aten.feature_dropout.default", "aten.detach.default",
               "aten.detach_.default", "aten.alias.default"}  # fmt: skip
# Operators that copy their first argument, or return it itself where it need not change.
_CASTS = {"aten.to.dtype", "aten.to.dtype_layout", "aten.to.device", "aten._to_copy.default"}


class ExportReader:
    """Reads an ExportedProgram into a TracedGraph.

    Operators that compute nothing and nodes that nothing reads are left out; every node gets a key, a role and a group.
    """

    def __init__(
        self,
        program: TraceProgram,
        arguments: FlatArguments,
        input_roles: Mapping[str, Role],
        model: str,
        class_name: str,
    ) -> None:
        """Prepare to read.

        Args:
            program: What torch.export gave.
            arguments: What it was exported with.
            input_roles: Roles of the tensor arguments, by path.
            model: What plans call the model.
            class_name: The class of its module.
        """
        self.program = program
        self.arguments = arguments
        self.input_roles = input_roles
        self.model = model
        self.class_name = class_name
        self.replaced: dict[str, Argument] = {}  # fx node name -> what stands for it
        self.roles: dict[str, Role] = {}
        self.inputs: list[Input] = []
        self.parameters: dict[str, Parameter] = {}
        self.nodes: list[Node] = []
        self.position: Counter[str] = Counter()
        self.storages: Storages

    def read(self) -> TracedGraph:
        """The graph; to be called once.

        Raises:
            TraceError: The program holds what no component can run; the message says what and what to do.
        """
        signature = self.program.graph_signature
        for spec in signature.output_specs:
            if spec.kind is not OutputKind.USER_OUTPUT:
                raise TraceError(
                    f"{self.model} changes {spec.target or 'an input'} in its forward ({spec.kind.name}); a component "
                    "cannot share state that changes: compute it from the inputs instead"
                )
        self.storages = find_storages(self.program, self.model)
        kinds = {spec.arg.name: spec for spec in signature.input_specs}
        paths = iter(self._user_inputs())
        results: tuple[Argument, ...] = ()
        for fx_node in self.program.graph.nodes:
            if fx_node.op == "placeholder":
                spec = kinds[fx_node.name]
                if spec.kind is InputKind.USER_INPUT:
                    self._read_input(fx_node, next(paths))
                elif spec.kind is not InputKind.CUSTOM_OBJ:  # a torch.Generator, whose reader draws numbers
                    self._read_parameter(fx_node, spec)
            elif fx_node.op == "call_function":
                self._read_call(fx_node)
            elif fx_node.op == "output":
                flat = fx_node.args[0] if isinstance(fx_node.args[0], (list, tuple)) else (fx_node.args[0],)
                results = tuple(self._argument(item) for item in flat)
            elif fx_node.op != "get_attr":  # an operand of a higher-order operator
                raise TraceError(f"{self.model}: node {fx_node.name} is a {fx_node.op}, which no component can run")
        nodes = self.storages.group(self.storages.needed(self.nodes, results), self.roles)
        read = {name for node in nodes for name in node.reads}
        return TracedGraph(
            model=self.model,
            class_name=self.class_name,
            inputs=tuple(self.inputs),
            literals=tuple(self.arguments.literals.items()),
            parameters=tuple(p for name, p in self.parameters.items() if name in read),
            nodes=nodes,
            results=results,
            containers=tuple(self.arguments.containers.items()),
            form=_nested_form(self.program, len(results)),
        )

    def _user_inputs(self) -> list[str | None]:
        """Paths of the user inputs in placeholder order; None for a literal."""
        return [path if path in self.arguments.tensors else None for path in _paths(self.program)]

    def _read_input(self, fx_node: torch.fx.Node, path: str | None) -> None:
        if path is None:
            self.replaced[fx_node.name] = None  # literals are constants of the program; nothing reads them
            return
        role = self.input_roles[path]
        self.replaced[fx_node.name] = Ref(path)
        self.roles[path] = Role.LATENT if role is Role.STEP else role
        self.inputs.append(Input(path, _meta(fx_node.meta["val"]), role))

    def _read_parameter(self, fx_node: torch.fx.Node, spec: Any) -> None:
        name = fx_node.name
        if spec.kind is InputKind.CONSTANT_TENSOR:
            if fx_node.users:
                self._read_constant(fx_node, self.program.constants[spec.target], spec.target)
            return
        self.replaced[name] = Ref(name)
        self.roles[name] = Role.CONSTANT
        value = fx_node.meta["val"]
        needs_grad = fx_node.meta["requires_grad"] if isinstance(value, TensorMeta) else value.requires_grad
        self.parameters[name] = Parameter(name, str(spec.target), _meta(value), needs_grad)

    def _read_constant(self, fx_node: torch.fx.Node, tensor: torch.Tensor, name: str) -> None:
        """Have a node make what is neither parameter nor buffer: a number by its operator, else a tensor of data."""
        user = next(iter(fx_node.users))
        module, meta = calling_module(user), _meta(fx_node.meta["val"])
        where = f"{self.model}: {caller(user)} reads a tensor that is neither parameter nor buffer ({name}"
        if tensor.nbytes > MAX_CONSTANT_BYTES:
            raise TraceError(
                f"{where}, {meta}), of {tensor.nbytes >> 20} MiB; a graph carries up to {MAX_CONSTANT_BYTES >> 20} MiB "
                "as data: register it as a buffer in __init__"
            )
        number, data = number_in(tensor), None
        if number is None:
            data = tensor_data(tensor)
            if data is None:
                raise TraceError(f"{where}, {meta}), {UNKNOWN_VALUES}")
        kind = "full" if data is None else "tensor"
        dtype, device = Symbol("dtype", meta.dtype), Symbol("device", "cpu")
        self.nodes.append(
            Node(
                name=fx_node.name,
                key=f"{module}/{kind}.{fx_node.name}",
                target="aten.full.default" if data is None else CONSTANT,
                args=(meta.shape, number) if data is None else (data,),
                kwargs=(("dtype", dtype), ("device", device)) if data is None else (),
                module=module,
                role=Role.CONSTANT,
                outputs=(meta if data is None else data.meta,),
            )
        )
        self.replaced[fx_node.name] = Ref(fx_node.name)

    def _argument(self, item: Any) -> Argument:
        if isinstance(item, torch.fx.Node):
            return self.replaced[item.name]
        if isinstance(item, (list, tuple)):
            return tuple(self._argument(part) for part in item)
        for kind, cls in _SYMBOLS:
            if isinstance(item, cls):
                return Symbol(kind, str(item).removeprefix("torch."))
        if item is None or isinstance(item, (bool, int, float, str)):
            return item
        if isinstance(item, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            raise TraceError(f"{self.model}: a size depends on the values of a tensor ({item}); make it static")
        raise TraceError(f"{self.model}: an operator takes a {type(item).__name__}, which a plan cannot carry")

    def _read_call(self, fx_node: torch.fx.Node) -> None:
        target = _target_name(fx_node.target, self.model, caller(fx_node))
        if target in _DROPPED:
            return
        if draws_random_numbers(fx_node.target, fx_node.args, fx_node.kwargs):
            raise TraceError(
                f"{self.model}: {caller(fx_node)} draws random numbers ({target}), which "
                "every rank would draw for itself: call .eval() on it, or give it the numbers as an argument"
            )
        module = calling_module(fx_node)
        value = fx_node.meta.get("val")
        if any(isinstance(size, torch.SymInt) for size in _sizes(value)):
            raise TraceError(
                f"{self.model}: {caller(fx_node)} calls {target}, whose result has a size that depends on "
                "the values of a tensor; a plan needs fixed sizes: use torch.where instead of a mask as an index"
            )
        outputs = _metas(value)
        args = tuple(self._argument(item) for item in fx_node.args)
        kwargs = tuple((key, self._argument(item)) for key, item in fx_node.kwargs.items())
        ordinal = self.position[f"{module}/{target}"]
        self.position[f"{module}/{target}"] += 1
        if self._is_identity(fx_node, target, args, kwargs, outputs):
            self.replaced[fx_node.name] = args[0]
            return
        node = Node(
            name=fx_node.name,
            key=f"{module}/{target.removeprefix('aten.').removesuffix('.default')}.{ordinal}",
            target=target,
            args=args,
            kwargs=kwargs,
            module=module,
            role=Role.CONSTANT,
            outputs=outputs,
        )
        self.nodes.append(node)
        self.replaced[node.name] = Ref(node.name)

    def _is_identity(
        self,
        fx_node: torch.fx.Node,
        target: str,
        args: tuple[Argument, ...],
        kwargs: tuple[tuple[str, Argument], ...],
        outputs: tuple[TensorMeta, ...],
    ) -> bool:
        """Whether the output can be replaced by the first argument."""
        if target in _IDENTITIES:
            return True
        source = self._meta_of(args[0]) if args and isinstance(args[0], Ref) else None
        if source is None or outputs != (source,):
            return False
        if self.storages.is_written(fx_node.name) or self.storages.is_written(fx_node.all_input_nodes[0].name):
            return False  # a copy that is written to, or whose source is, must stay a copy
        if target in _CASTS:
            copies = dict(kwargs).get("copy", False) or True in args[1:]
            return not copies and "memory_format" not in dict(kwargs)
        if target in ("aten.div.Tensor", "aten.mul.Tensor") and not kwargs:
            # x / 1.0 and x * 1.0 are x, bit for bit; diffusers has one per attention
            return isinstance(args[1], (int, float)) and args[1] == 1
        return False

    def _meta_of(self, ref: Ref) -> TensorMeta | None:
        if ref.name in self.parameters:
            return self.parameters[ref.name].meta
        for item in self.inputs:
            if item.name == ref.name:
                return item.meta
        for node in reversed(self.nodes):
            if node.name == ref.name:
                return node.outputs[0] if len(node.outputs) == 1 else None
        return None


_SYMBOLS = (
    ("dtype", torch.dtype), ("device", torch.device), ("layout", torch.layout), ("memory_format", torch.memory_format),
)  # fmt: skip


def _paths(program: TraceProgram) -> list[str]:
    """Argument paths in the order of the flattened inputs."""
    in_spec = program.call_spec.in_spec
    assert in_spec is not None
    _, kwargs = tree_unflatten(list(range(in_spec.num_leaves)), in_spec)
    path_of = {number: path for path, number in flatten_arguments(kwargs).values.items()}
    return [path_of[number] for number in range(in_spec.num_leaves)]


def _nested_form(program: TraceProgram, results: int) -> OutputForm:
    """The form of the output where a container in it holds another, else None."""
    out_spec = program.call_spec.out_spec
    form = output_form(tree_unflatten([None] * results, out_spec)) if out_spec is not None else None
    return form if form is not None and any(item is not None for _, item in form[1]) else None


def _target_name(target: Any, model: str, place: str) -> str:
    if isinstance(target, OpOverload):
        return str(target)
    if target is operator.getitem:
        return "operator.getitem"
    if getattr(target, "__module__", "") in ("_operator", "math", "torch.sym_ops"):
        raise TraceError(
            f"{model}: {place} computes with a size ({target.__name__}) that depends on the values "
            "of a tensor; a plan needs fixed sizes: give every part as many rows as there can be, and mask them"
        )
    raise TraceError(
        f"{model}: {place} calls {getattr(target, '__name__', target)}, a higher-order operator; "
        "a component holds plain tensor operators only: move control flow and maps out of its forward"
    )


def _meta(value: torch.Tensor | TensorMeta) -> TensorMeta:
    return value if isinstance(value, TensorMeta) else meta_of(value)


def _sizes(value: Any) -> list[Any]:
    if isinstance(value, torch.Tensor):
        return [*value.shape, *value.stride()]
    return [size for item in value for size in _sizes(item)] if isinstance(value, (list, tuple)) else []


def _metas(value: Any) -> tuple[TensorMeta, ...]:
    if isinstance(value, (torch.Tensor, TensorMeta)):
        return (_meta(value),)
    if isinstance(value, (list, tuple)):
        return tuple(_meta(item) for item in value if isinstance(item, (torch.Tensor, TensorMeta)))
    return ()
