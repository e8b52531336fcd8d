"""run_segment: run a segment on a rank; an error names the rank, the step and the node that failed."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from runtime.errors import ComponentFailed, NonFiniteValue, RankOutOfMemory, bytes_wanted
from runtime.worker.commands import Setup
from runtime.worker.segment import Segment


def run_segment(
    segment: Segment, values: Mapping[str, torch.Tensor], setup: Setup, step: int
) -> dict[str, torch.Tensor]:
    """The values that a segment computes, by name.

    Args:
        segment: what to run.
        values: by name; at least what the segment reads.
        setup: of the rank, for what errors say.
        step: number of the evaluation, likewise.

    Raises:
        RankOutOfMemory: the device has no memory for it.
        ComponentFailed: it raised anything else.
    """
    try:
        return segment(values)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, MemoryError) as error:
        text = f"{type(error).__name__}: {error}"
        rank, component = setup.rank, setup.component
        node = segment.failing_node(error, values)
        if _is_out_of_memory(error):
            raise RankOutOfMemory(
                text, rank=rank, component=component, step=step, node=node, size_bytes=bytes_wanted(error)
            ) from error
        raise ComponentFailed(text, rank=rank, component=component, step=step, node=node) from error


def check_finite(
    segment: Segment,
    values: Mapping[str, torch.Tensor],
    made: Mapping[str, torch.Tensor],
    *,
    setup: Setup,
    step: int,
) -> None:
    """Raise NonFiniteValue, which names the first node that made NaN or Inf, where ``made`` holds such.

    Args:
        segment: what has run; it runs again, node by node, to find the node.
        values: what it read.
        made: what it computed.
        setup: of the rank, for what the error says.
        step: number of the evaluation, likewise.
    """
    for name, tensor in made.items():
        if _is_not_finite(tensor):
            raise NonFiniteValue(
                f"%{name} holds NaN or Inf, first made",
                rank=setup.rank,
                component=setup.component,
                step=step,
                node=segment.first_node(values, _is_not_finite),
            )


def _is_not_finite(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch says that a device has no more memory."""
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or bytes_wanted(error) is not None
        or "not enough memory" in str(error).lower()
    )
