"""CallReader: checks a denoiser call's arguments against the plan, makes them uniform and splits them over branches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from partitioner.errors import PartitionerError
from partitioner.graph.arguments import bind_arguments, flatten_arguments, forward_signature
from partitioner.graph.ir import TracedGraph
from partitioner.graph.nesting import nest_arguments
from partitioner.graph.nodes import Argument
from partitioner.plan.plan import Plan
from runtime.driver.rows import split_rows
from runtime.errors import InputError

MOST_TOGETHER = 256
Tensors = Mapping[str, torch.Tensor]  # by path, such as "added_cond_kwargs.text_embeds"
CallSignature = tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class CallForm:
    """What a call's arguments are besides their tensors.

    Attributes:
        paths: of all tensors and literals, in the order of the call.
        literals: numbers, strings and None, by path.
        containers: kinds of the lists, tuples and empty dicts, by path.
        timestep: as it was passed; None where there is none.
    """

    paths: tuple[str, ...]
    literals: Mapping[str, Argument]
    containers: Mapping[str, str]
    timestep: torch.Tensor | float | None = None


class CallReader:
    """Reads the calls of one denoiser that is run by one plan."""

    def __init__(self, denoiser: nn.Module, plan: Plan) -> None:
        self._denoiser = denoiser
        self._plan = plan
        self._planned = {item.path: item for item in plan.inputs}
        self._latent = next(item for item in plan.inputs if item.role == "latent")
        # whether the latent is one of a list of samples, each without rows
        self._is_listed = self._latent.path.rpartition(".")[0] in {item.path for item in plan.containers}
        self._timesteps = [item for item in plan.inputs if item.role == "timestep"]
        # shapes of calls whose rows stay together; of too many the first to come are found out anew
        self._together: dict[frozenset[tuple[str, torch.Size]], None] = {}

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], CallForm]:
        """Read a call's arguments.

        A timestep that is a number, or of an integer type where the plan has float32, is converted to the plan's form,
        since schedulers differ in it (lossless below 2**24).

        Args:
            args: positional arguments, as the denoiser takes them.
            kwargs: keyword arguments; those that are None by default and here are left out, and so is return_dict.

        Returns:
            The tensors by path, such as "added_cond_kwargs.text_embeds", and all else of the arguments.

        Raises:
            InputError: the denoiser cannot be called like this, the latent is missing or has another number of
                dimensions than the plan's, or a tensor is of a dtype that the denoiser cannot take.
        """
        try:
            arguments = bind_arguments(self._denoiser, args, kwargs)
            arguments.pop("return_dict", None)
            latent = arguments.get(self._latent.path)
            device = latent.device if isinstance(latent, torch.Tensor) else None
            numbers: dict[str, float] = {}
            for item in self._timesteps:
                given = arguments.get(item.path)
                if isinstance(given, (int, float)):
                    numbers[item.path] = float(given)
                    arguments[item.path] = torch.full(
                        item.shape, given, dtype=getattr(torch, item.dtype), device=device
                    )
            flat = flatten_arguments(arguments)
        except (TypeError, PartitionerError) as error:
            raise InputError(f"the denoiser cannot be called like this: {error}") from error
        tensors = flat.tensors
        passed: dict[str, torch.Tensor | float] = {**tensors, **numbers}
        timestep = next((passed[item.path] for item in self._timesteps if item.path in passed), None)
        self._check_latent(tensors)
        self._check_autocast(tensors)
        for path, tensor in tensors.items():
            planned = self._planned.get(path)
            if planned is not None and planned.role != "timestep":
                self._check_dtype(path, tensor, getattr(torch, planned.dtype))
            elif planned is not None and planned.dtype == "float32" and not tensor.is_floating_point():
                tensors[path] = tensor.float()
        return tensors, CallForm(tuple(flat.values), flat.literals, flat.containers, timestep)

    def _check_latent(self, tensors: Tensors) -> None:
        """All else is for the trace to decide; what rows are is the latent's to say."""
        path, shape = self._latent.path, self._latent.shape
        if path not in tensors:
            raise InputError(f"the noisy sample, {path}, is missing from this call; the plan's calls have it")
        if tensors[path].dim() != len(shape):
            raise InputError(
                f"{path} has {tensors[path].dim()} dimensions ({list(tensors[path].shape)}), the plan has {len(shape)} "
                f"({list(shape)}): make a plan for such calls"
            )

    def _check_autocast(self, tensors: Tensors) -> None:
        device = tensors[self._latent.path].device.type
        if torch.is_autocast_enabled(device):
            raise InputError(
                f"torch.autocast is on for {device} around this call, and ranks compute in the dtypes that tensors "
                "have: call outside of it, with the pipeline in the dtype that you want (torch_dtype=, or .to(dtype))"
            )

    def _check_dtype(self, path: str, tensor: torch.Tensor, planned: torch.dtype) -> None:
        """Traces do not see what operators do not take; a plan may be run in another floating dtype than its own."""
        whole = not planned.is_floating_point and not tensor.is_floating_point()  # masks and ids of any kind
        if not whole and tensor.dtype != planned and tensor.dtype != self._dtype():
            expected = self._dtype() if planned.is_floating_point else planned
            raise InputError(f"{path} is of {tensor.dtype}, expected {expected}: convert it with .to({expected})")

    def roles(self, tensors: Tensors) -> dict[str, str]:
        """The role of each input: the plan's, and "step" for those that it does not know.

        These may be given anew at every step, as a ControlNet's residuals; of those that stay the same it is true too.
        """
        roles: dict[str, str] = {path: item.role for path, item in self._planned.items()}
        return roles | {path: "step" for path in tensors if path not in roles}

    def differences(self, tensors: Tensors) -> str:
        """In what a call's tensors differ from the plan's, in words: "mask is not in the plan"; "" for nothing."""
        found = [f"{path} is missing" for path in self._planned if path not in tensors]
        for path, tensor in tensors.items():
            planned = self._planned.get(path)
            if planned is None:
                found.append(f"{path} is not in the plan")
            elif tuple(tensor.shape) != planned.shape:
                found.append(f"{path} is {list(tensor.shape)}, in the plan {list(planned.shape)}")
        more = f"; and {len(found) - 4} more" if len(found) > 4 else ""
        return "; ".join(found[:4]) + more

    def dtype_mismatch(self, tensors: Tensors) -> str:
        """In words that the latent is of a floating dtype that no parameter is of, as after a cast; "" if it is not."""
        path, own = self._latent.path, self._dtype()
        if any(tensor.dtype == tensors[path].dtype for tensor in self._denoiser.parameters()):
            return ""
        return f"{path} is of {tensors[path].dtype} and the denoiser of {own}: convert either with .to(dtype)"

    def by_branch(self, tensors: Tensors) -> list[dict[str, torch.Tensor]]:
        """The inputs of each branch of a stream, by path; one branch takes all rows where they cannot be shared out."""
        if self._together and _shapes(tensors) in self._together:
            return [dict(tensors)]
        return self._split(tensors, self._plan.branch_rows or [1] * self._plan.branches_per_stream)

    def keep_together(self, tensors: Tensors) -> None:
        """Have one branch take all rows of such calls from now on."""
        self._together = dict.fromkeys([*self._together, _shapes(tensors)][-MOST_TOGETHER:])

    def share_again(self) -> None:
        """Share the rows of all calls among branches again."""
        self._together.clear()

    def parts(self, tensors: Tensors, count: int) -> list[dict[str, torch.Tensor]]:
        """Split the inputs into ``count`` parts of equally many rows; one part where that is not possible."""
        return self._split(tensors, [1] * count)

    def _split(self, tensors: Tensors, shares: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        if self._is_listed or len(shares) == 1:
            return [dict(tensors)]
        return split_rows(tensors, self._latent.path, {path: i.shape for path, i in self._planned.items()}, shares)

    def example(self, tensors: Tensors, form: CallForm) -> dict[str, Any]:
        """Arguments to trace such a call with, by name; their tensors are zeros."""
        zeros = {
            path: torch.empty_strided(tensor.shape, _strides(tensor), dtype=tensor.dtype).zero_()
            for path, tensor in tensors.items()
        }
        values = {path: zeros[path] if path in zeros else form.literals[path] for path in form.paths}
        arguments = nest_arguments(values, form.containers)
        if "return_dict" in forward_signature(self._denoiser).parameters:
            arguments["return_dict"] = False
        return arguments

    def planned_example(self) -> dict[str, Any]:
        """Arguments to trace the call that the plan was made for, in the denoiser's own floating dtype."""
        dtype = self._dtype()
        zeros = {
            item.path: torch.zeros(
                item.shape, dtype=dtype if item.dtype == self._latent.dtype else getattr(torch, item.dtype)
            )
            for item in self._plan.inputs
        }
        return self._plan.example_arguments(zeros)

    def _dtype(self) -> torch.dtype:
        """The denoiser's floating dtype."""
        return next((t.dtype for t in self._denoiser.parameters() if t.is_floating_point()), torch.float32)


def _shapes(tensors: Tensors) -> frozenset[tuple[str, torch.Size]]:
    return frozenset((path, tensor.shape) for path, tensor in tensors.items())


def call_signature(tensors: Tensors, form: CallForm) -> CallSignature:
    """What the traced graph of a call depends on, as a key: shapes, layouts, dtypes, literals and containers.

    An image that was encoded lies channels last, a drawn latent does not, and convolutions round differently for it.
    """
    shapes = ((path, *layout_of(tensor)) for path, tensor in tensors.items())
    return _signature(shapes, form.literals.items(), form.containers.items())


def graph_signature(graph: TracedGraph) -> CallSignature:
    """The ``call_signature`` of the calls that a traced graph is of."""
    shapes = (
        (item.name, *_layout(item.meta.shape, item.meta.stride), f"torch.{item.meta.dtype}") for item in graph.inputs
    )
    return _signature(shapes, graph.literals, graph.containers)


def layout_of(tensor: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...], str]:
    """What a traced graph depends on of a tensor: its shape, the strides of its copy, and its dtype."""
    return _layout_of(tensor.shape, tensor.stride(), tensor.dtype)


@lru_cache(maxsize=1024)
def _layout_of(
    shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype
) -> tuple[tuple[int, ...], tuple[int, ...], str]:
    return *_layout(shape, _strides_of_copy(shape, stride)), str(dtype)


def _strides(tensor: torch.Tensor) -> tuple[int, ...]:
    """The strides of the tensor's copy, as ranks get it: those of expanded and cut out ones are not its own."""
    return _strides_of_copy(tensor.shape, tensor.stride())


@lru_cache(maxsize=1024)
def _strides_of_copy(shape: torch.Size, stride: tuple[int, ...]) -> tuple[int, ...]:
    return torch.empty_like(torch.empty_strided(shape, stride, device="meta")).stride()


def _layout(shape: Sequence[int], stride: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape, and the strides of what is longer than 1; others have no meaning."""
    return tuple(shape), tuple(step for length, step in zip(shape, stride, strict=True) if length > 1)


def _signature(
    shapes: Iterable[tuple[Any, ...]],
    literals: Iterable[tuple[str, Argument]],
    containers: Iterable[tuple[str, str]],
) -> CallSignature:
    given = sorted((path, repr(value)) for path, value in literals if path != "return_dict")
    return (*sorted(shapes), *given, *sorted(containers))
