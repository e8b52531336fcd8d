"""StepCalls: how often a pipeline calls its denoisers, how often per step, and how many calls could be lagged."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from partitioner.graph.arguments import bind_arguments, flatten_arguments
from partitioner.plan.plan import Plan


@dataclass
class StepCalls:
    """The calls that a pipeline makes of its denoisers.

    Attributes:
        timesteps: Of each denoiser by its name in the pipeline, the timestep of each call; where calls have none,
            their numbers.
    """

    timesteps: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """How many calls there are."""
        return sum(map(len, self.timesteps.values()))

    @property
    def per_step(self) -> int:
        """How many calls most steps have, of the denoiser of which it is most."""
        return max(map(_per_step, self.timesteps.values()), default=0)

    def could_be_lagged(self, warmup: int) -> int:
        """How many calls there are but for the warm-up of each stream.

        >>> StepCalls({"unet": [9, 9, 6, 6, 3, 3]}).could_be_lagged(warmup=1)
        4
        """
        return sum(max(0, len(made) - warmup * _per_step(made)) for made in self.timesteps.values())

    def could_be_foreseen(self) -> int:
        """How many calls are neither of the first step, which shows what a step's calls are, nor the first of theirs.

        >>> StepCalls({"unet": [9, 9, 6, 6, 3, 3]}).could_be_foreseen()
        2
        """
        return sum(max(0, len(made) // _per_step(made) - 1) * (_per_step(made) - 1) for made in self.timesteps.values())


@contextmanager
def step_calls(pipe: Any, plans: Mapping[str, Plan]) -> Iterator[StepCalls]:
    """Inside it the calls that a pipeline makes of its denoisers are noted.

    Args:
        pipe: The pipeline, unmodified.
        plans: Of its denoisers by their names in it, which know what the timestep is.
    """
    noted = StepCalls()
    with ExitStack() as hooks:
        for name, plan in plans.items():
            path = next((item.path for item in plan.inputs if item.role == "timestep"), None)
            made = noted.timesteps.setdefault(name, [])

            def note(
                module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any = made, path: Any = path
            ) -> None:
                made.append(_timestep(module, args, kwargs, path) if path is not None else len(made))

            hooks.callback(getattr(pipe, name).register_forward_pre_hook(note, with_kwargs=True).remove)
        yield noted


def _timestep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str) -> Any:
    """A call's timestep, as what can be compared: equal for calls of more and of fewer rows."""
    value = flatten_arguments(bind_arguments(module, args, kwargs)).values.get(path)
    return sorted(set(value.flatten().tolist())) if isinstance(value, torch.Tensor) else value


def _per_step(timesteps: list[Any]) -> int:
    return statistics.mode([len([*same]) for _, same in itertools.groupby(timesteps)]) if timesteps else 1
