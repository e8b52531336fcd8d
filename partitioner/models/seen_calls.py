"""SeenCall: what was seen of one denoiser call; and the roles that follow from several.

Legend: a call's arguments are taken apart into paths ("added_cond_kwargs.text_embeds"). Calls of one *step* have the
same latent and timestep; calls at the same *place* in their steps are of one stream.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from partitioner.errors import UsageError
from partitioner.graph.arguments import bind_arguments, flatten_arguments
from partitioner.graph.nesting import nest_arguments
from partitioner.graph.nodes import Argument, Role
from partitioner.graph.tensor_meta import name_of_dtype
from partitioner.graph.torch_private.fakes import FakeTensor
from partitioner.graph.torch_private.trees import tree_leaves
from partitioner.models.inputs import ExampleTensor, Inputs
from partitioner.models.stand_ins import digest_of


@dataclass(frozen=True)
class SeenTensor:
    """One tensor argument of one call.

    Attributes:
        shape: Its shape.
        dtype: Its dtype, such as "float32".
        name: Equal for tensors of equal values.
        number: The one number that all its entries are that are not 0, as of a timestep; None where there are several.
        given: Whether another module gave it as it is.
        row: As name, of the first row; of the tensor where it has no rows.
        pair: The lesser and the larger of the two numbers that its entries are, as of a timestep where part of the
            sample is given, with some little noise; None where they are not two.
    """

    shape: tuple[int, ...]
    dtype: str
    name: bytes
    number: float | None = None
    given: bool = False
    pair: tuple[float, float] | None = None
    row: bytes = b""


@dataclass(frozen=True)
class SeenCall:
    """One call.

    Attributes:
        tensors: By path.
        literals: Numbers, strings and None, by path.
        containers: Kinds of lists, tuples and empty dicts, by path.
        paths: Of all tensors and literals, in the order of the call.
        outputs: The shapes of the tensors that it gave.
    """

    tensors: Mapping[str, SeenTensor]
    literals: Mapping[str, Argument]
    containers: Mapping[str, str]
    paths: tuple[str, ...]
    outputs: tuple[tuple[int, ...], ...]

    @property
    def form(self) -> tuple[Any, ...]:
        """Equal for calls whose traces are the same but for literals."""
        return self.paths, tuple((path, seen.shape, seen.dtype) for path, seen in self.tensors.items())


def see(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any, given: Collection[bytes] = ()
) -> SeenCall:
    """Look at one call.

    Args:
        module: What was called.
        args: Of the call.
        kwargs: Of the call.
        output: What it gave.
        given: Names (``digest_of``) of what other modules gave.

    Raises:
        TraceError: An argument is nothing that can be traced.
    """
    arguments = bind_arguments(module, args, kwargs)
    arguments.pop("return_dict", None)
    flat = flatten_arguments(arguments)
    outputs = tuple(tuple(leaf.shape) for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor))
    tensors = {path: _look_at(tensor, given) for path, tensor in flat.tensors.items()}
    return SeenCall(tensors, flat.literals, flat.containers, tuple(flat.values), outputs)


def _look_at(tensor: torch.Tensor, given: Collection[bytes]) -> SeenTensor:
    name = digest_of(tensor)
    return SeenTensor(
        tuple(tensor.shape), name_of_dtype(tensor), name, _number_of(tensor), name in given,
        _pair_of(tensor), digest_of(tensor[:1]) if tensor.dim() else name,
    )  # fmt: skip


def _values_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """Its entries; None where there are none, or they are not known."""
    if isinstance(tensor, FakeTensor) or tensor.numel() == 0 or tensor.is_complex():
        return None
    return tensor.detach().flatten().to(torch.float64)


def _pair_of(tensor: torch.Tensor) -> tuple[float, float] | None:
    values = _values_of(tensor)
    if values is None:
        return None
    least, largest = values.min(), values.max()
    return (float(least), float(largest)) if bool(((values == least) | (values == largest)).all()) else None


def _number_of(tensor: torch.Tensor) -> float | None:
    values = _values_of(tensor)
    if values is None:
        return None
    others = values[values != 0]
    if len(others) == 0:
        return 0.0
    return float(others[0]) if bool((others == others[0]).all()) else None


@dataclass(frozen=True)
class SeenRoles:
    """What calls showed.

    Attributes:
        example: The call to trace: one of the most common form.
        roles: Of each tensor, by path.
        calls_per_step: How often a step calls the denoiser.
        steps: How many steps were seen.
    """

    example: SeenCall
    roles: Mapping[str, Role]
    calls_per_step: int
    steps: int

    @property
    def latent(self) -> str:
        """The path of the noisy sample."""
        return next(path for path, role in self.roles.items() if role is Role.LATENT)

    @property
    def rows(self) -> int:
        """Rows of the noisy sample."""
        return self.example.tensors[self.latent].shape[0]

    @property
    def in_list(self) -> bool:
        """Whether the noisy samples are a list, each without rows."""
        return self.latent.rpartition(".")[0] in self.example.containers

    def with_shapes(self, shape: Callable[[str, tuple[int, ...]], tuple[int, ...]]) -> SeenRoles:
        """The same with tensors of other shapes. shape: of a tensor, by its path and its shape here."""
        tensors = {path: replace(t, shape=shape(path, t.shape)) for path, t in self.example.tensors.items()}
        return replace(self, example=replace(self.example, tensors=tensors))

    def of(self, calls: Sequence[SeenCall]) -> SeenRoles | None:
        """The same roles in other calls; None where those have other arguments."""
        example = _most_common([_with_numbers(call, calls) for call in calls])
        if example.tensors.keys() != self.roles.keys():
            return None
        steps = _steps(calls, self.latent)
        return SeenRoles(example, self.roles, max(map(len, steps)), len(steps))

    def inputs(self, dtype: str) -> Inputs:
        """The arguments of the example call. dtype: the denoiser's, which tensors then need not name."""
        values: dict[str, Any] = dict(self.example.literals)
        for path, seen in self.example.tensors.items():
            role = self.roles[path]
            whole_timestep = role is Role.TIMESTEP and seen.dtype.startswith(("int", "uint"))
            named = "float32" if whole_timestep else seen.dtype  # samplers differ in it, see inputs.timestep
            values[path] = ExampleTensor(role, seen.shape, None if named == dtype else named)
        return nest_arguments({path: values[path] for path in self.example.paths}, self.example.containers)

    def __str__(self) -> str:
        groups: dict[str, list[str]] = {}
        for path, role in sorted(self.roles.items(), key=lambda item: -item[1]):
            groups.setdefault(role.name.lower(), []).append(path)
        return "; ".join(f"{role}: {', '.join(paths)}" for role, paths in groups.items())


def roles_of(calls: Sequence[SeenCall], others: Sequence[SeenCall] | None = None) -> SeenRoles:
    """The roles that follow from consecutive calls.

    Args:
        calls: Consecutive calls, of two steps at least.
        others: The same calls, had the denoiser given other outputs: what differs comes from its outputs. None: not
            known; then the latent is what changes as a whole, and the timestep what changes as one number.

    Raises:
        UsageError: They show no latent, as those of one step do not.
    """
    calls = [_with_numbers(call, calls) for call in calls]
    changing = {path for path in calls[0].tensors if len(_names(path, calls)) > 1}
    if others is not None:
        pairs = list(zip(calls, [_with_numbers(call, others) for call in others], strict=False))
        driven = {
            path for path in changing
            if any(path in a.tensors and path in b.tensors and a.tensors[path].name != b.tensors[path].name
                   for a, b in pairs)
        }  # fmt: skip
    else:
        driven = {path for path in changing if any(c.tensors[path].number is None for c in calls if path in c.tensors)}
        driven = _not_prompts(driven, calls)
    latent = _latent(driven, calls)
    steps = _steps(calls, latent)
    places = [[step[place] for step in steps if place < len(step)] for place in range(max(map(len, steps)))]
    changes = {
        path for path in changing
        if any(len(_names(path, stream)) > 1 for stream in places)
    }  # fmt: skip
    stepwise = [path for path in calls[0].tensors if path in changes - driven]
    times = [path for path in stepwise if _is_time(path, calls)]
    times = times or [path for path in stepwise if _is_time_of_parts(path, calls)][:1]
    first = next(iter(times), None)
    example = _most_common(calls)

    def role(path: str) -> Role:
        if path == latent:
            return Role.LATENT
        if first is not None and path in times and _numbers(path, calls) == _numbers(first, calls):
            return Role.TIMESTEP
        return Role.STEP if path in driven | changes or path not in calls[0].tensors else Role.PROMPT

    return SeenRoles(example, {path: role(path) for path in example.tensors}, max(map(len, steps)), len(steps))


def _most_common(calls: Sequence[SeenCall]) -> SeenCall:
    """A call of the form that most have."""
    form = Counter(call.form for call in calls).most_common(1)[0][0]
    return next(call for call in calls if call.form == form)


def _with_numbers(call: SeenCall, calls: Sequence[SeenCall]) -> SeenCall:
    """The call with numbers that change from call to call, as a timestep that is a float, seen as tensors."""
    numbers = {
        path: float(value) for path, value in call.literals.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
        and len({other.literals.get(path) for other in calls}) > 1
    }  # fmt: skip
    if not numbers:
        return call
    tensors = {path: SeenTensor((), "float32", repr(value).encode(), value) for path, value in numbers.items()}
    literals = {path: value for path, value in call.literals.items() if path not in numbers}
    return replace(call, tensors={**call.tensors, **tensors}, literals=literals)


def _not_prompts(driven: set[str], calls: Sequence[SeenCall]) -> set[str]:
    """Of what changes as a whole, what never comes again: conditions of guidance's two calls take turns."""
    return {path for path in driven if len(calls) < 4 or len(_names(path, calls)) > 2}


def _latent(driven: set[str], calls: Sequence[SeenCall]) -> str:
    """The noisy sample: of what comes from the denoiser's outputs, what no other module gave and is shaped as they."""
    if not driven:
        raise UsageError(
            "none of the denoiser's arguments changed with its outputs, so that the noisy sample is not known; give "
            "roles to partitioner.compile(module, example_inputs, roles, devices=...)"
        )
    output = calls[0].outputs[0] if calls[0].outputs else ()

    def rank(path: str) -> tuple[bool, bool, int]:
        shape = next(call.tensors[path].shape for call in calls if path in call.tensors)
        given = any(call.tensors[path].given for call in calls[1:] if path in call.tensors)
        alike = len(shape) == len(output) and sum(a != b for a, b in zip(shape, output, strict=True)) <= 1
        return given, not (shape == output or alike), list(calls[0].paths).index(path) if path in calls[0].paths else 99

    return min(driven, key=rank)


def _steps(calls: Sequence[SeenCall], latent: str) -> list[list[SeenCall]]:
    """The calls of each step: those in a row that have the same latent, be it for more rows or for fewer."""
    grouped = itertools.groupby(calls, key=lambda call: call.tensors[latent].row if latent in call.tensors else b"")
    return [list(step) for _, step in grouped]


def _is_time(path: str, calls: Sequence[SeenCall]) -> bool:
    """Whether a tensor is one number in each call, and not the same in all: masks hold the number 1 in every call."""
    numbers = _numbers(path, calls)
    return None not in numbers and len(set(numbers)) > 1


def _is_time_of_parts(path: str, calls: Sequence[SeenCall]) -> bool:
    """Whether a tensor holds two numbers in each call: one that stays, of what is given, and another that does not."""
    pairs = [call.tensors[path].pair for call in calls if path in call.tensors]
    known = [pair for pair in pairs if pair is not None]
    return len(known) == len(pairs) and len({least for least, _ in known}) == 1 and len({most for _, most in known}) > 1


def _names(path: str, calls: Sequence[SeenCall]) -> set[bytes]:
    return {call.tensors[path].name for call in calls if path in call.tensors}


def _numbers(path: str, calls: Sequence[SeenCall]) -> list[float | None]:
    return [call.tensors[path].number for call in calls if path in call.tensors]
