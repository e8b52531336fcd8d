"""trace: any denoiser to a TracedGraph, by torch.export; no weight is read or copied."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from itertools import chain
from threading import get_ident
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from partitioner.errors import ForwardFailed, TraceError
from partitioner.graph.alone import LIBRARIES, alone_with, parts_of
from partitioner.graph.arguments import FlatArguments, bind_arguments, flatten_arguments, role_of
from partitioner.graph.constants import MAX_CONSTANT_BYTES
from partitioner.graph.direct_trace import NotDirect, TraceProgram, direct_trace
from partitioner.graph.dtypes import check_dtypes
from partitioner.graph.ir import TracedGraph
from partitioner.graph.module_state import Difference, ModuleState
from partitioner.graph.nesting import nest_arguments
from partitioner.graph.nodes import Role
from partitioner.graph.own_attention import OwnAttention
from partitioner.graph.reader import ExportReader
from partitioner.graph.regions import inline_regions
from partitioner.graph.rewrites import rewritten
from partitioner.graph.stateless import check_stateless
from partitioner.graph.torch_private.fakes import fake_mode_of, memory_put_back, untold
from partitioner.graph.torch_private.fakes_with_constants import FakesWithConstants, without_constants
from partitioner.graph.torch_private.trees import tree_leaves
from partitioner.graph.torch_private.written_text import forgotten_sources, nothing_to_read
from partitioner.graph.trace_failure import refuse_unloadable, trace_failure
from partitioner.graph.trace_limits import TraceLimits
from partitioner.process import interrupts_put_off, raise_interrupt_behind


def trace(
    module: nn.Module,
    example_inputs: Mapping[str, Any],
    roles: Mapping[str, str | Role],
    *,
    model: str = "custom",
) -> TracedGraph:
    """Trace ``module(**example_inputs)`` into a graph of its operators.

    Args:
        module: The denoiser, in eval mode.
        example_inputs: Keyword arguments of a call: tensors (real or fake), literals (None, bool, int, float, str), and
            dicts, lists and tuples of them. The graph holds for their shapes and dtypes and for these literals.
        roles: What each tensor argument is, by its path ("timestep", "added_cond_kwargs.text_embeds") or a prefix of
            its path ("added_cond_kwargs"), of which the longest counts: "latent" (the noisy sample), "timestep",
            "step" (given anew at every step, as a ControlNet's residuals), "prompt" (the same for a whole trajectory)
            or "constant". One must be "latent".
        model: What plans call the model.

    Raises:
        TraceError: The module cannot be traced; the message says where and what to do. Or an argument has no role.

    >>> import torch
    >>> module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.SiLU()).eval()
    >>> print(trace(module, {"input": torch.zeros(2, 8)}, {"input": "latent"}))
    custom (Sequential), 2 nodes
    input %input: float32[2,8] latent
    %linear = aten.linear.default(%input, %p_0_weight, %p_0_bias)  # latent float32[2,8] 0/linear.0
    %silu = aten.silu.default(%linear)  # latent float32[2,8] 1/silu.0
    return (%silu,)
    """
    try:
        flat = flatten_arguments(bind_arguments(module, (), example_inputs))
    except TypeError as error:
        raise ForwardFailed(
            f"{model} ({type(module).__name__}) cannot be called with these arguments: {error}"
        ) from error
    input_roles = {path: role_of(path, roles) for path in flat.tensors}
    if Role.LATENT not in input_roles.values():
        raise TraceError(
            f"no tensor argument has the role 'latent' (arguments: {', '.join(flat.tensors) or 'none'}); "
            "name the noisy sample in roles"
        )
    nested = nest_arguments(flat.values, flat.containers)
    held = next(chain(module.parameters(), module.buffers()), None)

    def export_and_read() -> TracedGraph:
        with makes_on(held.device if held is not None else "cpu"):
            program = _export(module, nested, model)
            try:
                return _read(program, flat, input_roles, model, type(module).__name__)
            except TraceError:  # raised again, with the line of the denoiser in which the operator is called
                program = _export(module, nested, model, lines=True)
                return _read(program, flat, input_roles, model, type(module).__name__)

    graph = alone_with(parts_of(module) | LIBRARIES, export_and_read)
    check_dtypes(graph)
    return graph


@contextmanager
def fake_mode() -> Iterator[None]:
    """Inside it tensors have shapes and dtypes but no storage, so that a model of any size can be built and traced.

    Small ones that are made of numbers alone do have values: those that a module keeps beside its parameters and
    buffers are constants of its graph.

    The default dtype stays as it is. ModelSpec.build sets it to the model's while it builds, and not for tracing: a
    forward that makes tensors without naming a dtype, as SVD's does, makes them float32 in a real call.

    >>> with fake_mode():
    ...     layer = torch.nn.Linear(100_000, 100_000)  # 40 GB
    >>> layer.weight.shape
    torch.Size([100000, 100000])
    """
    mode = FakesWithConstants(MAX_CONSTANT_BYTES)
    try:
        with mode, torch.no_grad(), untold(), makes_on("cpu"):
            yield
    finally:
        if mode.state_before_draws is not None:  # only then: what other threads draw meanwhile must not come again
            torch.set_rng_state(mode.state_before_draws)


def makes_on(device: torch.device | str) -> AbstractContextManager[Any]:
    """Inside it torch makes tensors on that device where none is named, if the user has set a default device.

    That is meant for calls, and not for what is made to trace them, nor for what an engine makes of its own.
    """
    return torch.device(device) if torch.get_default_device() != torch.device("cpu") else nullcontext()


def _read(
    program: TraceProgram, flat: FlatArguments, roles: Mapping[str, Role], model: str, class_name: str
) -> TracedGraph:
    if isinstance(program, ExportedProgram):
        inline_regions(program.graph_module, model)
    return ExportReader(program, flat, roles, model, class_name).read()


@rewritten()
def _export(module: nn.Module, arguments: Mapping[str, Any], model: str, lines: bool = False) -> TraceProgram:
    if module.training:
        raise TraceError(f"{model} is in training mode; call .eval() first")
    refuse_unloadable(module, model)
    failed_in: list[str] = []
    changed: list[Difference] = []
    names = {id(child): name for name, child in module.named_modules()}
    limits = TraceLimits(model)

    tracer = get_ident()

    def note(child: nn.Module, _args: Any) -> None:
        if get_ident() != tracer:  # it is called by another thread, and has fakes for parameters until the trace ends
            return alone_with(parts_of(child), lambda: None)
        limits.look()
        failed_in.append(names.get(id(child), ""))

    def clear(child: nn.Module, _args: Any, _output: Any) -> None:
        if get_ident() != tracer:
            return
        failed_in.pop()
        if child is module and not changed:  # torch.export itself puts some attributes back
            changed.extend(difference for difference in state.differences() if not difference.is_part)

    put_back: list[Callable[[], None]] = []
    try:
        with interrupts_put_off():
            for child in module.modules():
                put_back.append(child.register_forward_pre_hook(note, prepend=True).remove)
                put_back.append(child.register_forward_hook(clear).remove)
        watch = OwnAttention(lambda: failed_in[-1] if failed_in else "")
        state = ModuleState(module)
        put_back.insert(0, state.restore)
        state.restore()  # which empties caches: a tensor in them would be a constant of the graph
        with (
            torch.no_grad(),
            without_constants(),
            forgotten_sources(),
            untold(),
            memory_put_back((*module.parameters(), *module.buffers())),
            warnings.catch_warnings(),
            watch,
        ):
            # what a forward assigns is looked at here
            warnings.filterwarnings("ignore", "The tensor attribute.* assigned during export", UserWarning)
            program = _program(module, arguments, watch, state, (failed_in, changed, watch.places), lines)
    except TraceError:
        raise
    except Exception as error:
        raise_interrupt_behind(error)
        raise trace_failure(error, module, failed_in[-1] if failed_in else "", model) from error
    finally:
        with interrupts_put_off():
            for put in put_back:
                put()
    if watch.places:
        raise TraceError(
            f"{model}: module {watch.places[0] or '<root>'} chooses in its forward how torch computes attention "
            "(torch.nn.attention.sdpa_kernel, as diffusers' attention backends _native_… do), which no graph shows. "
            "Reset the backend and choose it around the whole call, which is followed: with sdpa_kernel(...): pipe(...)"
        )
    if changed or state.foreign:
        check_stateless(module, arguments, model)
    return program


def _program(
    module: nn.Module,
    arguments: Mapping[str, Any],
    watch: OwnAttention,
    state: ModuleState,
    noted: Sequence[list[Any]],
    lines: bool,
) -> TraceProgram:
    """What a denoiser does, by direct_trace where that can be, else by torch.export.

    Args:
        module: The denoiser.
        arguments: Its arguments.
        watch: Knows which module is running.
        state: Of the module, to be put back before it runs again.
        noted: What is noted while it runs, to be forgotten then.
        lines: Note for every operator which line of the denoiser calls it, which only torch.export does, and slowly.
    """
    weights = (*module.parameters(), *module.buffers())
    if not lines and weights:
        state.bring_to(weights[0].device)
        with suppress(NotDirect), fake_mode_of([*weights, *tree_leaves(dict(arguments))]):
            program = direct_trace(module, arguments, watch.where)
            if not any(noted):
                return program
        state.restore()
        for notes in noted:
            notes.clear()
    if weights:
        state.bring_to(weights[0].device)
    with nothing_to_read(lines):
        return torch.export.export(module, (), dict(arguments), strict=False)
