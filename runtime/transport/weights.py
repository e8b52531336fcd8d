"""Weights: a denoiser's parameters and buffers, and which of them lie in the driver's memory.

Where a file holds exactly what is in memory, ranks read what they need from it themselves, all at the same time; the
rest (a LoRA that was fused, say) is sent to them. While they run, the driver releases the memory of parameters that
other ranks hold: the parameter becomes a view of the file, mapped and not read, so that whoever reads it sees its
values all the same.
"""

from __future__ import annotations

import atexit
import logging
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from partitioner.graph.ir import Parameter, TensorMeta
from runtime.devices.memory import give_back
from runtime.errors import EngineError, PlanMismatch
from runtime.transport.weight_files import MappedFile, StoredTensor, WeightFiles, at_offset, offset_of

logger = logging.getLogger("runtime")


@dataclass(frozen=True)
class _Released:
    """A parameter that is a view of a file now.

    path: in the denoiser's state, when it was released. memory: where the mapping begins, by which the view is known.
    offset: of its memory before, see offset_of. version: counts the writes to it.
    """

    path: str
    parameter: torch.Tensor
    mapped: MappedFile
    memory: int
    offset: int
    version: int

    @property
    def is_as_released(self) -> bool:
        """Whether its memory is still the mapping, and nobody has given it other memory."""
        return _memory(self.parameter) == self.memory


class Weights:
    """The parameters and buffers of one denoiser, by path in its state."""

    def __init__(self, denoiser: nn.Module) -> None:
        """Look for the denoiser's files.

        Raises:
            PlanMismatch: some of its parameters are not in memory.
        """
        check_in_memory(denoiser)
        self._denoiser = denoiser
        self._files = WeightFiles(denoiser)
        self._stored: dict[str, StoredTensor | None] = {}  # path -> the file that was found to hold it
        self._released: dict[int, _Released] = {}  # by the parameter's id
        self._mapped: list[MappedFile] = []  # that they are views of

    @property
    def released(self) -> frozenset[str]:
        """Paths of the parameters that the driver's memory does not hold now."""
        return frozenset(released.path for released in self._released.values())

    def files_of(self, wanted: Sequence[Parameter]) -> dict[str, StoredTensor]:
        """path -> the file that holds exactly that tensor now, for those of the parameters that a file holds."""
        return self._files_of([parameter.path for parameter in wanted])

    def _files_of(self, paths: Collection[str]) -> dict[str, StoredTensor]:
        state = self.state()
        self._stored |= {path: self._files.holding(path, state[path]) for path in paths if path in state}
        return {path: stored for path in paths if (stored := self._stored.get(path)) is not None}

    def tensors_of(self, wanted: Sequence[Parameter]) -> dict[str, torch.Tensor]:
        """path -> the denoiser's own tensor, not a copy, in the order of ``wanted``.

        Raises:
            PlanMismatch: the denoiser has no such parameter or buffer.
        """
        state = self.state()
        for parameter in wanted:
            if parameter.path not in state:
                raise PlanMismatch(f"the denoiser has no parameter or buffer {parameter.path}, which its graph reads")
        return {p.path: state[p.path].detach() for p in wanted}

    def offsets_of(self, wanted: Sequence[Parameter]) -> tuple[int, ...]:
        """How far the driver's tensors begin beyond a multiple of 64 bytes, see ``offset_of``; 0 for what it lacks."""
        state = self.state()
        return tuple(self._offset(state[p.path]) if p.path in state else 0 for p in wanted)

    def take_out(self, wanted: Sequence[Parameter]) -> None:
        """Give parameters and buffers memory of their own, if they may lie in a mapped file, which they would keep."""
        self._take_out([parameter.path for parameter in wanted])

    def _take_out(self, paths: Collection[str]) -> None:
        state = self.state()
        alone = _not_overlapping(state.values())
        for path, stored in self._files_of(paths).items():
            tensor = state[path]
            if id(tensor) in alone and stored.dtype == tensor.dtype:
                _own_memory(tensor, self._offset(tensor))
                self._released.pop(id(tensor), None)

    def release(self, paths: Collection[str], kept: Collection[str]) -> None:
        """Make views of files of those parameters that a file holds in the same dtype and layout.

        Args:
            paths: which may be released; ``files_of`` has been asked for their files.
            kept: which may not, even if they are the same parameters under other paths; they have been taken out. All
                else that is not released is taken out, too.
        """
        state = self.state()
        stays = {id(state[path]) for path in kept if path in state}
        alone = _not_overlapping(state.values()) - stays
        by_file: dict[StoredTensor, list[str]] = defaultdict(list)
        for path in dict.fromkeys(paths):
            stored, tensor = self._stored.get(path), state.get(path)
            if stored is not None and id(tensor) in alone and _can_be_view(tensor, stored.dtype):
                alone.remove(id(tensor))
                by_file[stored].append(path)
        for stored, names in by_file.items():
            try:
                mapped = MappedFile(stored.file, stored.state, names)
            except OSError:
                continue  # it was written to just now: the parameters stay in memory
            self._mapped.append(mapped)
            for path, view in mapped.tensors.items():
                self._release(path, state[path], mapped, view)
        self._take_out([path for path, tensor in state.items() if id(tensor) not in stays | self._released.keys()])
        atexit.register(self._released.clear)  # a program that ends needs nothing back, and can read nothing any more
        self._stored.clear()  # what is done to the denoiser from now on may make it untrue
        give_back()

    def _release(self, path: str, parameter: torch.Tensor, mapped: MappedFile, view: torch.Tensor) -> None:
        offset = offset_of(parameter)
        parameter.data = view.as_strided(parameter.shape, parameter.stride())
        memory, version = _memory(parameter), parameter._version
        self._released[id(parameter)] = _Released(path, parameter, mapped, memory, offset, version)

    def lost(self) -> list[torch.Tensor]:
        """The released parameters whose file was written to, so that they have lost their values."""
        changed = [mapped for mapped in self._mapped if mapped.is_changed]
        return [each.parameter for each in self._released.values() if each.mapped in changed and each.is_as_released]

    def put_back(self, values: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Give released parameters memory again. values: each parameter, and what it is to hold."""
        for parameter, value in values:
            released = self._released.pop(id(parameter))
            parameter.data = at_offset(value, released.offset)
            if parameter._version != released.version:
                logger.warning(
                    f"{released.path} was changed inside the parallelize block, and then its file "
                    f"{released.mapped.file} was written to: the change is lost, and must be made again"
                )

    def restore(self) -> None:
        """Put what was released into memory again, as it is by now; what was given other memory is left alone.

        Raises:
            EngineError: a file was written to, so that parameters in it cannot be had any more; they are NaN then.
        """
        lost = set(map(id, self.lost()))
        files = {str(each.mapped.file) for each in self._released.values() if id(each.parameter) in lost}
        for each in self._released.values():
            if id(each.parameter) in lost:
                each.parameter.data = torch.full_like(each.parameter, float("nan"))
            elif each.is_as_released:
                _own_memory(each.parameter, each.offset)
        while self._mapped:
            self._mapped.pop().close()
        self._released.clear()
        atexit.unregister(self._released.clear)
        if lost:
            raise EngineError(
                f"{', '.join(sorted(files))} was written to while an engine ran, and the ranks that have its "
                f"{len(lost)} parameters have ended: the parameters are NaN now; load the pipeline again"
            )

    def _offset(self, tensor: torch.Tensor) -> int:
        released = self._released.get(id(tensor))
        return released.offset if released is not None and released.is_as_released else offset_of(tensor)

    def state(self) -> dict[str, torch.Tensor]:
        """The denoiser's tensors as they are now, by path; one that has several paths stands at each."""
        state: dict[str, torch.Tensor] = dict(self._denoiser.named_parameters(remove_duplicate=False))
        state.update(self._denoiser.named_buffers(remove_duplicate=False))
        return state


def check_in_memory(denoiser: nn.Module) -> None:
    """Check that a denoiser has its parameters and buffers.

    Raises:
        PlanMismatch: some of them have no memory, as after sequential CPU offload.
    """
    for path, tensor in (*denoiser.named_parameters(), *denoiser.named_buffers()):
        if tensor.is_meta:
            raise PlanMismatch(
                f"{path} of this {type(denoiser).__name__} is not in memory (its device is meta), as after "
                "enable_sequential_cpu_offload: load the pipeline without it; each rank holds its own part only"
            )


def _memory(tensor: torch.Tensor) -> int:
    """Where the memory begins that it lies in."""
    return tensor.untyped_storage().data_ptr()


def meta_of(tensor: torch.Tensor) -> TensorMeta:
    """Its shape, strides and dtype."""
    return TensorMeta(tuple(tensor.shape), tuple(tensor.stride()), str(tensor.dtype).removeprefix("torch."))


def _own_memory(tensor: torch.Tensor, offset: int) -> None:
    tensor.data = at_offset(tensor.detach().clone(), offset)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether it lies in ordinary memory of this process, in no parts, and can be given other memory."""
    if type(tensor.data) is not torch.Tensor or tensor.is_inference():
        return False
    return tensor.device.type == "cpu" and tensor.layout is torch.strided


def _can_be_view(tensor: torch.Tensor | None, dtype: torch.dtype) -> bool:
    if type(tensor) is not nn.Parameter or tensor.nbytes == 0:
        return False
    return tensor.dtype == dtype and tensor.is_floating_point() and tensor.is_contiguous()


def _not_overlapping(tensors: Collection[torch.Tensor]) -> set[int]:
    """Ids of those plain tensors whose memory no other of them has a part of."""
    plain = {id(tensor): tensor for tensor in tensors if _is_plain(tensor)}
    found = set(plain)
    end, last = 0, 0
    for tensor in sorted(plain.values(), key=torch.Tensor.data_ptr):
        if tensor.nbytes and tensor.data_ptr() < end:
            found -= {id(tensor), last}
        if tensor.data_ptr() + tensor.nbytes > end:
            end, last = tensor.data_ptr() + tensor.nbytes, id(tensor)
    return found
