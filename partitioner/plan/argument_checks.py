"""check_arguments: what a plan says of its denoiser's arguments must make one call, and one that memory could hold."""

from __future__ import annotations

import math
from collections.abc import Sequence

from partitioner.graph.nodes import DTYPE_BYTES
from partitioner.plan.fields import shown_briefly
from partitioner.plan.records import PlanContainer, PlanInput, PlanLiteral

MOST_INPUT_BYTES = 2**34  # of all inputs together; a minute of video in pixels takes as many


def check_arguments(
    inputs: Sequence[PlanInput],
    literals: Sequence[PlanLiteral],
    containers: Sequence[PlanContainer],
    alike: Sequence[str],
) -> None:
    """Check inputs, literals and containers of a plan.

    Raises:
        ValueError: No input is the noisy sample, or it is of whole numbers; a path stands twice; the inputs are of
            absurd size; or ``alike`` names no input. The message names the place in the file.
    """
    latents = [number for number, item in enumerate(inputs) if item.role == "latent"]
    if not latents:
        raise ValueError("inputs: none has the role latent; expected one that has, the noisy sample")
    for number in latents:
        if inputs[number].dtype.startswith(("int", "uint", "bool")):
            raise ValueError(
                f"inputs.{number}.dtype: {inputs[number].dtype}, and its role is latent; expected a floating dtype"
            )
    _check_twice(inputs=inputs, literals=literals)
    _check_twice(containers=containers)
    size_bytes = 0
    for number, item in enumerate(inputs):
        size_bytes += math.prod(item.shape) * DTYPE_BYTES[item.dtype]
        if size_bytes > MOST_INPUT_BYTES:
            raise ValueError(
                f"inputs.{number}.shape: with {list(item.shape)} of {item.dtype} the inputs up to this one would have "
                f"{shown_briefly(size_bytes)} bytes; expected at most {MOST_INPUT_BYTES}"
            )
    known = {item.path for item in inputs}
    for number, path in enumerate(alike):
        if path not in known:
            raise ValueError(f"alike.{number}: {shown_briefly(path)} is the path of no input")


def _check_twice(**fields: Sequence[PlanInput | PlanLiteral | PlanContainer]) -> None:
    """ValueError if two records of some fields have one path."""
    seen: dict[str, str] = {}
    for field, records in fields.items():
        for number, record in enumerate(records):
            if record.path in seen:
                raise ValueError(
                    f"{field}.{number}.path: {shown_briefly(record.path)} stands twice, in {seen[record.path]} too"
                )
            seen[record.path] = f"{field}.{number}"
