"""The device stream of every rank, and whether its device offers the acceleration that the user asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from runtime.devices.cuda_shares import share_streams
from runtime.devices.cuda_stream import CudaDeviceStream
from runtime.devices.places import with_index
from runtime.devices.stream import DeviceStream
from runtime.errors import InputError


def check_acceleration(transport: str, devices: Sequence[str], *, cuda_graphs: bool, green_contexts: bool) -> None:
    """Raise InputError where CUDA graphs or green contexts are asked for and the ranks cannot have them.

    Args:
        transport: the engine's, see runtime.options.
        devices: of the ranks.
        cuda_graphs: whether ranks shall replay CUDA graphs.
        green_contexts: whether ranks that share a GPU shall get shares of it.
    """
    if cuda_graphs and not all(torch.device(device).type == "cuda" for device in devices):
        raise InputError(f"CUDA graphs need GPUs, and the devices are {', '.join(devices)}; leave cuda_graphs out")
    if green_contexts and transport != "threads":
        raise InputError(
            f"green contexts need ranks that are threads of one process; use transport 'threads', not {transport!r}"
        )


def device_streams(devices: Sequence[str], *, green_contexts: bool = False) -> list[DeviceStream]:
    """A device stream for each rank.

    Args:
        devices: rank -> device, as torch names it; "cuda" is the current GPU.
        green_contexts: ranks that share a GPU get equal, disjoint shares of it.

    Raises:
        InputError: green contexts are asked for, and no two ranks share a GPU.
    """
    whole = [torch.device(with_index(device)) for device in devices]
    ranks_on = Counter(device for device in whole if device.type == "cuda")
    if green_contexts and max(ranks_on.values(), default=0) < 2:
        raise InputError(
            f"green contexts divide a GPU between ranks that share it, and none of {', '.join(devices)} is shared; "
            "name one several times, as in cuda:0,cuda:0, or leave them out"
        )
    streams: list[DeviceStream] = []
    placed: Counter[torch.device] = Counter()
    for rank, device in enumerate(whole):
        if device.type != "cuda":
            streams.append(DeviceStream(rank, device))
        elif green_contexts and ranks_on[device] > 1:
            share = share_streams(device.index, ranks_on[device])[placed[device]]
            streams.append(CudaDeviceStream(rank, device, share))
        else:
            streams.append(CudaDeviceStream(rank, device))
        placed[device] += 1
    return streams
