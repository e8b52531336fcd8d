"""device_names: the devices that a user names for the ranks, checked before anything is done for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from runtime.errors import InputError

TYPES = ("cpu", "cuda")  # that ranks can compute on


def device_names(devices: Sequence[str | torch.device], option: str = "devices") -> list[str]:
    """The names of the devices.

    Args:
        devices: rank -> device.
        option: what errors call them.

    Raises:
        InputError: it is no list of devices, or one of them is neither a CPU nor a GPU that is here.

    >>> device_names(["cpu", "meta"])
    Traceback (most recent call last):
    runtime.errors.InputError: devices has 'meta'; expected cpu or cuda:N, one for each rank
    """
    if isinstance(devices, str) or not isinstance(devices, Sequence) or not devices:
        raise InputError(
            f"{option} is {devices!r}; expected a list of devices such as ['cpu', 'cpu'], one for each rank"
        )
    for device in devices:
        _check(device, option)
    return [str(device) for device in devices]


def _check(device: str | torch.device, option: str) -> None:
    try:
        if not isinstance(device, (str, torch.device)):
            raise RuntimeError
        named = torch.device(device)
    except RuntimeError:  # whatever torch says of a name; an older one lists what no rank can compute on
        named = None
    if named is None or named.type not in TYPES:
        raise InputError(f"{option} has {device!r}; expected cpu or cuda:N, one for each rank")
    if named.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (named.index or 0) >= count:
            there = (
                "there is no GPU that torch can use" if not count else f"the GPUs here are cuda:0 to cuda:{count - 1}"
            )
            raise InputError(f"{option} has {device!r}, and {there}")
