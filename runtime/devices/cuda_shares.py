"""Shares of a GPU: streams whose kernels run on some of its multiprocessors only (CUDA's green contexts).

torch.cuda.green_contexts.GreenContext.create splits the whole GPU anew in every call, so that two contexts made one
after the other get the same multiprocessors (seen in its source up to torch 2.13). Disjoint shares come from one split,
which is made here through NVIDIA's own bindings, a package that torch's CUDA builds depend on.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch

from runtime.errors import InputError


@functools.cache
def share_streams(index: int, shares: int) -> tuple[torch.cuda.Stream, ...]:
    """One stream per equal, disjoint share of the multiprocessors of GPU ``index``; made once in a process and kept.

    The multiprocessors that remain, because shares come in units, are nobody's: of 132, two shares have 64 each.
    InputError where the GPU, its driver or this torch cannot do it.
    """
    device = torch.device("cuda", index)
    return tuple(
        torch.cuda.ExternalStream(stream, device)  # type: ignore[no-untyped-call]
        for stream, _ in _split(index, shares)
    )


@functools.cache
def share_size(index: int, shares: int) -> int:
    """How many multiprocessors each of the shares has."""
    return _split(index, shares)[0][1]


@functools.cache
def _split(index: int, shares: int) -> tuple[tuple[int, int], ...]:
    """(stream, multiprocessors) of each share."""
    try:
        driver: Any = importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise InputError(
            f"green contexts need the package cuda-bindings, which torch's CUDA builds depend on ({error})"
        ) from error

    def done(result: tuple[Any, ...], what: str) -> Any:
        status, *values = result
        if status != driver.CUresult.CUDA_SUCCESS:
            raise InputError(f"cuda:{index} cannot be divided into {shares} shares: {what} says {status.name}")
        return values[0] if len(values) == 1 else values

    torch.cuda.synchronize(index)  # makes the device's own context, which the shares are parts of
    device = done(driver.cuDeviceGet(index), "cuDeviceGet")
    kind = driver.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
    whole = done(driver.cuDeviceGetDevResource(device, kind), "cuDeviceGetDevResource")
    for least in range(whole.sm.smCount // shares, 0, -1):  # it is rounded up to what the GPU can separate
        status, groups, count, _rest = driver.cuDevSmResourceSplitByCount(shares, whole, 0, least)
        if status == driver.CUresult.CUDA_SUCCESS and count == shares:
            break  # a split is disjoint and even
    else:
        raise InputError(
            f"cuda:{index} cannot be divided into {shares} shares of its {whole.sm.smCount} multiprocessors"
        )
    made = []
    for group in groups[:shares]:
        description = done(driver.cuDevResourceGenerateDesc([group], 1), "cuDevResourceGenerateDesc")
        context = done(
            driver.cuGreenCtxCreate(description, device, driver.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM),
            "cuGreenCtxCreate",
        )
        stream = done(
            driver.cuGreenCtxStreamCreate(context, driver.CUstream_flags.CU_STREAM_NON_BLOCKING, 0),
            "cuGreenCtxStreamCreate",
        )
        _KEPT.append(context)
        made.append((int(stream), int(group.sm.smCount)))
    return tuple(made)


_KEPT: list[Any] = []  # contexts live as long as the process, as their streams do: torch's allocator remembers those
