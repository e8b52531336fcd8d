"""AsyncDiff's policy, executed for comparison: whole denoiser on every rank, every hooked output broadcast, blocking.

Written from the paper (arXiv 2406.06911) and from what github.com/czg1225/AsyncDiff does with stride 1. A split names
modules for each component. After the warm-up a rank computes only its own component's modules; in place of the others
it takes what their owners computed in the previous call. At the start of a lagged call these outputs are broadcast one
after the other, at its end the denoiser's output is, each with a blocking call.
"""

from __future__ import annotations

import multiprocessing
import pickle
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import nn
from torch.distributed import TCPStore  # type: ignore[attr-defined] # public, but not in its __all__

from partitioner.baselines.asyncdiff_split import published_split
from partitioner.graph.torch_private import gloo_group
from runtime.ranks.rank_report import resident_bytes

HOST = "127.0.0.1"
Exchange = Callable[[torch.Tensor, int], None]
Call = Mapping[str, Any]  # the denoiser's keyword arguments, return_dict=False among them


@dataclass(frozen=True)
class Policy:
    """components: the hooked modules of each, by path. sent: those of them whose outputs are broadcast, in order."""

    components: tuple[tuple[str, ...], ...]
    sent: tuple[str, ...]

    @property
    def owner(self) -> dict[str, int]:
        """Component of each hooked module."""
        return {path: k for k, paths in enumerate(self.components) for path in paths}


def published_policy(model: str, components: int) -> Policy:
    """AsyncDiff's own split of a UNet that it knows; all hooked modules are broadcast."""
    split = published_split(model, components)
    if split is None:
        raise ValueError(f"AsyncDiff has published no split of {model} into {components} components")
    return Policy(tuple(map(tuple, split)), tuple(path for paths in split for path in paths))


def even_policy(denoiser: nn.Module, components: int) -> Policy:
    """As AsyncDiff splits SD3's transformer: blocks evenly, its head with the last; the border blocks are broadcast."""
    name, blocks = max(
        ((name, child) for name, child in denoiser.named_children() if isinstance(child, nn.ModuleList)),
        key=lambda item: len(item[1]),
    )
    each = len(blocks) // components
    borders = [k * each for k in range(components)] + [len(blocks)]
    split = [tuple(f"{name}.{i}" for i in range(borders[k], borders[k + 1])) for k in range(components)]
    head = tuple(path for path in ("norm_out", "proj_out") if isinstance(getattr(denoiser, path, None), nn.Module))
    return Policy((*split[:-1], split[-1] + head), tuple(paths[-1] for paths in split[:-1]))


class HookedDenoiser:
    """One rank's denoiser under a policy: call it with the denoiser's keyword arguments.

    exchange(tensor, component): broadcasts a contiguous tensor from that component's rank, in place, blocking.
    """

    def __init__(self, denoiser: nn.Module, policy: Policy, component: int, exchange: Exchange) -> None:
        self._denoiser = denoiser
        self._component = component
        self._exchange = exchange
        self._last = len(policy.components) - 1
        self._hooks = {path: _Hook(denoiser.get_submodule(path), owner) for path, owner in policy.owner.items()}
        self._sent = [self._hooks[path] for path in policy.sent]
        self.start(1)

    def start(self, warmup: int) -> None:
        """Begin a trajectory: its first ``warmup`` calls are exact and nothing is sent before the last of them."""
        self._calls, self._warmup = 0, warmup

    def __call__(self, **arguments: Any) -> torch.Tensor:
        """The denoiser's first output."""
        lagged = self._calls >= self._warmup
        if lagged:
            for hook in self._sent:
                self._exchange(hook.flat, hook.owner)
        for hook in self._hooks.values():
            hook.computes = not lagged or hook.owner == self._component
            hook.keeps = self._calls >= self._warmup - 1
        # a copy: where the last module is another rank's, this is what the next broadcast writes to
        output: torch.Tensor = self._denoiser(**arguments)[0].clone(memory_format=torch.contiguous_format)
        self._calls += 1
        if self._calls >= self._warmup:
            self._exchange(output, self._last)
        return output


class _Hook:
    """Stands in a module's place: computes, or hands out the output that it keeps as one flat tensor."""

    def __init__(self, module: nn.Module, owner: int) -> None:
        self.owner = owner
        self.computes = self.keeps = True
        self.flat = torch.zeros(0)
        self._shapes: list[torch.Size] = []
        self._structure: Any = None
        self._forward = module.forward
        module.forward = self.forward  # torch's own forward hooks cannot leave the computation out

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.computes:
            return _nested(self._structure, list(self._pieces()))
        output = self._forward(*args, **kwargs)
        if self.keeps:
            tensors: list[torch.Tensor] = []
            self._structure = _flattened(output, tensors)
            self._shapes = [tensor.shape for tensor in tensors]
            # one message per module, so one tensor
            self.flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        return output

    def _pieces(self) -> Sequence[torch.Tensor]:
        sizes = [shape.numel() for shape in self._shapes]
        return [part.view(shape) for part, shape in zip(torch.split(self.flat, sizes), self._shapes, strict=True)]


def _flattened(value: Any, tensors: list[torch.Tensor]) -> Any:
    """The structure of a module's output, numbers in place of tensors, which are appended to ``tensors``."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return len(tensors) - 1
    if isinstance(value, (tuple, list)):
        return tuple(_flattened(item, tensors) for item in value)
    raise TypeError(f"a hooked module returns a {type(value).__name__}; expected tensors and tuples of them")


def _nested(structure: Any, tensors: Sequence[torch.Tensor]) -> Any:
    return tensors[structure] if isinstance(structure, int) else tuple(_nested(item, tensors) for item in structure)


@dataclass(frozen=True)
class PolicyRun:
    """One trajectory. outputs: by call, as every rank has them. call_ms: time of each call on rank 0.

    sent_bytes: by call; each broadcast tensor once for every rank but its source. communication_ms: on each rank, time
    in broadcasts, waiting included. resident_bytes: memory of each rank's process afterwards.
    """

    outputs: tuple[torch.Tensor, ...]
    call_ms: tuple[float, ...]
    sent_bytes: tuple[int, ...]
    communication_ms: tuple[float, ...]
    resident_bytes: tuple[int, ...]


class PolicyRanks:
    """Processes that run a denoiser under a policy, one per component, over gloo. A context manager."""

    def __init__(self, denoiser: nn.Module, policy: Policy, *, threads: int = 1, timeout_s: float = 300.0) -> None:
        world = len(policy.components)
        self._timeout_s = timeout_s
        self._store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s))
        self._connections: list[Connection] = []
        self._processes: list[BaseProcess] = []
        context = multiprocessing.get_context("spawn")
        # plain bytes: what a connection does with tensors would put one copy in memory that all ranks share
        packed = pickle.dumps((denoiser, policy))
        try:
            for rank in range(world):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_serve, args=(theirs, rank, world, self._store.port, threads, timeout_s), daemon=True
                )
                process.start()
                theirs.close()
                self._connections.append(ours)
                self._processes.append(process)
                ours.send_bytes(packed)
            for rank in range(world):
                self._answer(rank)
        except BaseException:
            self.close()
            raise

    def run(self, calls: Sequence[Call], warmup: int = 1) -> PolicyRun:
        """One trajectory of these denoiser calls; RuntimeError with a rank's traceback if one fails."""
        packed = pickle.dumps((list(calls), warmup))
        for connection in self._connections:
            connection.send_bytes(packed)
        answers = [self._answer(rank) for rank in range(len(self._connections))]
        return PolicyRun(
            outputs=tuple(answers[0]["outputs"]),
            call_ms=tuple(answers[0]["call_ms"]),
            sent_bytes=tuple(map(sum, zip(*(answer["sent_bytes"] for answer in answers), strict=True))),
            communication_ms=tuple(answer["communication_ms"] for answer in answers),
            resident_bytes=tuple(answer["resident_bytes"] for answer in answers),
        )

    def _answer(self, rank: int) -> Any:
        try:
            if not self._connections[rank].poll(self._timeout_s):
                raise RuntimeError(f"rank {rank} of AsyncDiff's policy does not answer within {self._timeout_s:g} s")
            answer = pickle.loads(self._connections[rank].recv_bytes())
        except (EOFError, OSError):
            raise RuntimeError(f"rank {rank} of AsyncDiff's policy has died") from None
        if isinstance(answer, str):
            raise RuntimeError(f"rank {rank} of AsyncDiff's policy failed:\n{answer}")
        return answer

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()
        for connection in self._connections:
            connection.close()

    def __enter__(self) -> PolicyRanks:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class _Broadcasts:
    """Blocking broadcasts between the ranks, with what they cost."""

    def __init__(self, group: Any, rank: int, world: int) -> None:
        self._group, self._rank, self._world = group, rank, world
        self.sent_bytes = 0
        self.seconds = 0.0

    def __call__(self, tensor: torch.Tensor, source: int) -> None:
        start = time.perf_counter()
        self._group.broadcast(tensor, source).wait()
        self.seconds += time.perf_counter() - start
        if source == self._rank:
            self.sent_bytes += (self._world - 1) * tensor.numel() * tensor.element_size()


def _serve(connection: Connection, rank: int, world: int, port: int, threads: int, timeout_s: float) -> None:
    """A rank's process: one trajectory for every message, until the connection ends."""
    try:
        torch.set_num_threads(threads)
        denoiser, policy = pickle.loads(connection.recv_bytes())
        timeout = timedelta(seconds=timeout_s)
        group = gloo_group(TCPStore(HOST, port, timeout=timeout), rank, world, host=HOST, timeout=timeout)
        broadcasts = _Broadcasts(group, rank, world)
        hooked = HookedDenoiser(denoiser, policy, rank, broadcasts)
        connection.send_bytes(pickle.dumps(True))
        while True:
            calls, warmup = pickle.loads(connection.recv_bytes())
            connection.send_bytes(pickle.dumps(_run(hooked, broadcasts, calls, warmup)))
    except EOFError:
        return
    except BaseException:
        connection.send_bytes(pickle.dumps(traceback.format_exc()))


def _run(hooked: HookedDenoiser, broadcasts: _Broadcasts, calls: Sequence[Call], warmup: int) -> dict[str, Any]:
    hooked.start(warmup)
    broadcasts.seconds = 0.0
    outputs, call_ms, sent_bytes = [], [], []
    with torch.no_grad():
        for arguments in calls:
            broadcasts.sent_bytes = 0
            start = time.perf_counter()
            outputs.append(hooked(**arguments))
            call_ms.append(1e3 * (time.perf_counter() - start))
            sent_bytes.append(broadcasts.sent_bytes)
    return {
        "outputs": outputs,
        "call_ms": call_ms,
        "sent_bytes": sent_bytes,
        "communication_ms": 1e3 * broadcasts.seconds,
        "resident_bytes": resident_bytes(),
    }
