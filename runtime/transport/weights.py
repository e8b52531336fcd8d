"""Weights: a denoiser's parameters and buffers, and which of them lie in the driver's memory.

Where a file holds exactly what is in memory, ranks read what they need from it themselves, all at the same time; the
rest (a LoRA that was fused, say) is sent to them. While they run, the driver releases the memory of parameters that
other ranks hold: the parameter becomes a view of the file, mapped and not read, so that whoever reads it sees its
values all the same.
"""

from __future__ import annotations

import atexit
import weakref
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from torch import nn

from partitioner.graph.nodes import Parameter
from partitioner.graph.tensor_digest import digest, digests
from runtime.devices.memory import give_back
from runtime.errors import PlanMismatch, WeightsChanged
from runtime.transport.in_memory import check_in_memory
from runtime.transport.mapped_memory import is_within, private_mappings, written_pages
from runtime.transport.movable import is_plain, movable
from runtime.transport.weight_files import (
    FileState,
    MappedFile,
    OpenFile,
    StoredTensor,
    WeightFiles,
    at_offset,
    offset_of,
)


@dataclass(eq=False)
class _Released:
    """A parameter that is a view of a file now.

    path: in the denoiser's state, when it was released. memory: where the mapping begins, by which the view is known.
    offset: of its memory before, see offset_of. version: counts the writes to it. pages: see written_pages. digest: of
    what it holds, but for what is written to it. is_lost: whether its file was written to, so that it holds something
    else. is_written: whether it was written to itself by then.
    """

    path: str
    parameter: torch.Tensor
    mapped: MappedFile
    memory: int
    offset: int
    version: int
    digest: str | None
    pages: bytes | None = None
    is_lost: bool = False
    is_written: bool = False

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
        self._denoiser = weakref.ref(denoiser)  # it may have the engine that has this, which then must not keep it
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
        """Give parameters and buffers that lie in a mapped file memory of their own: who writes to it changes them.

        That and what follows leaves alone what is not ``movable``.
        """
        state = self.state()
        self._take_out({p.path: state[p.path] for p in wanted if p.path in state})

    def take_out_all(self) -> None:
        """The same for all that the denoiser has."""
        self._take_out(self.state())

    def take_out_written(self, written: Collection[torch.Tensor]) -> None:
        """Give released parameters that were written to memory of their own: no file holds what they hold."""
        found = [self._released[id(tensor)] for tensor in written if id(tensor) in self._released]
        alone = movable([released.parameter for released in found])
        for released in found:
            if released.is_as_released and id(released.parameter) in alone:
                _own_memory(released.parameter, released.offset)
            del self._released[id(released.parameter)]

    def _take_out(self, tensors: Mapping[str, torch.Tensor]) -> None:
        places = private_mappings()
        plain = [tensor for tensor in tensors.values() if is_plain(tensor)]
        in_files = {id(tensor): tensor for tensor in plain if is_within(places, tensor.data_ptr())}
        for number in movable(in_files.values(), self.state().values()):
            _own_memory(in_files[number], self._offset(in_files[number]))
            self._released.pop(number, None)

    def release(self, paths: Collection[str], kept: Collection[str]) -> None:
        """Make views of files of those parameters that a file holds in the same dtype and layout.

        Args:
            paths: which may be released; ``files_of`` has been asked for their files.
            kept: which may not, even if they are the same parameters under other paths; they have been taken out. All
                else that is not released is taken out, too.
        """
        state = self.state()
        stays = {id(state[path]) for path in kept if path in state}
        wanted = {id(state[path]): state[path] for path in paths if path in state}
        alone = movable([each for number, each in wanted.items() if number not in stays], state.values())
        by_file: dict[tuple[OpenFile, FileState], dict[str, str | None]] = defaultdict(dict)
        for path in dict.fromkeys(paths):
            stored, tensor = self._stored.get(path), state.get(path)
            if stored is not None and id(tensor) in alone and _can_be_view(tensor, stored.dtype):
                alone.remove(id(tensor))
                by_file[stored.opened, stored.state][path] = stored.digest
        for (opened, state_then), digest_of in by_file.items():
            try:
                mapped = MappedFile(opened, state_then, list(digest_of))
            except (OSError, SafetensorError):
                continue  # it was written to just now: the parameters stay in memory
            self._mapped.append(mapped)
            self._release(mapped, digest_of, state)
        pages = self.marks()
        for number, released in self._released.items():
            released.pages = released.pages or pages.get(number)
        self._take_out({path: each for path, each in state.items() if id(each) not in stays | self._released.keys()})
        atexit.register(self._released.clear)  # a program that ends needs nothing back, and can read nothing any more
        self._stored.clear()  # what is done to the denoiser from now on may make it untrue
        self._files.close()
        give_back()

    def _release(
        self, mapped: MappedFile, digest_of: Mapping[str, str | None], state: Mapping[str, torch.Tensor]
    ) -> None:
        """Have parameters, and nothing else, be what lies in a mapped file."""
        for path, view in mapped.tensors.items():
            parameter, offset = state[path], offset_of(state[path])
            parameter.data = view.as_strided(parameter.shape, parameter.stride())
            memory, version = _memory(parameter), parameter._version
            self._released[id(parameter)] = _Released(path, parameter, mapped, memory, offset, version, digest_of[path])
        mapped.tensors.clear()

    def marks(self) -> dict[int, bytes]:
        """By id, of the released parameters, what is another after any write to them: they need not be read for it."""
        return written_pages({number: each.parameter for number, each in self._views()})

    def _views(self) -> list[tuple[int, _Released]]:
        return [(number, each) for number, each in self._released.items() if each.is_as_released]

    def lost(self, *, thorough: bool = False) -> list[torch.Tensor]:
        """The released parameters whose file was written to, so that they have lost their values.

        thorough: compare all that they hold, and not only where the file's state is another.
        """
        for mapped in self._mapped:
            now, before = mapped.opened.state, mapped.state
            if now != before or thorough:
                self._look_at([each for _, each in self._views() if each.mapped is mapped], now, before)
                mapped.state = now
        # first what is fast to tell: every call asks, and mostly none is
        return [each.parameter for each in self._released.values() if each.is_lost and each.is_as_released]

    def _look_at(self, views: Sequence[_Released], now: FileState, before: FileState) -> None:
        """Find out which views of a file have lost their values. now, before: the file's state."""
        pages = self.marks()
        for each in views:
            each.is_written = self._is_written(each, pages)
            # what was written to cannot be compared; it is as it should be where the file was only renamed, say
            each.is_lost |= each.is_written and not now.may_hold_the_same(before)
            # what lies behind the file's end must not even be read
            each.is_lost |= now.size < before.size
        compared = [each for each in views if not each.is_written and not each.is_lost]
        for each, holds in zip(compared, digests([each.parameter for each in compared]), strict=True):
            each.is_lost = holds != each.digest

    def _is_written(self, view: _Released, pages: Mapping[int, bytes]) -> bool:
        """Whether a view was written to, or what is beside it. pages: those of all views now."""
        return (view.version, view.pages) != (view.parameter._version, pages.get(id(view.parameter)))

    def put_back(self, values: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[str]:
        """Give released parameters memory again.

        Args:
            values: each parameter, and what it is to hold.

        Returns:
            Paths of those that were written to before their file was: of that nothing is left.
        """
        pages, undone = self.marks(), []
        for parameter, value in values:
            released = self._released.pop(id(parameter))
            is_own = 0 not in pages.get(id(parameter), b"\0")  # then nothing in it comes from the file any more
            if parameter._version != released.version or (is_own and digest(parameter) != digest(value)):
                undone.append(released.path)
            parameter.data = at_offset(value, released.offset)
        return undone

    def restore(self) -> None:
        """Put what was released into memory again, as it is by now; what was given other memory is left alone.

        Raises:
            WeightsChanged: a file was written to, so that parameters in it cannot be had any more; they are NaN then.
        """
        lost, pages, views = set(map(id, self.lost())), self.marks(), self._views()
        alone = movable([each.parameter for _, each in views]) - lost
        for number, each in views:
            if number in alone:
                _own_memory(each.parameter, each.offset)
        for number, each in views:  # its file may have been written to while it was copied
            is_another = each.mapped.opened.state != each.mapped.state and not self._is_written(each, pages)
            if is_another and digest(each.parameter) != each.digest:
                lost.add(number)
        files = {str(each.mapped.opened.file) for number, each in views if number in lost}
        for number, each in views:
            if number in lost:
                each.parameter.data = torch.full_like(each.parameter, float("nan"))
        self._mapped.clear()
        self._released.clear()
        self._files.close()
        atexit.unregister(self._released.clear)
        if lost:
            raise WeightsChanged(
                f"{', '.join(sorted(files))} was written to while an engine ran, and the ranks that have its "
                f"{len(lost)} parameters have ended: the parameters are NaN now; load the pipeline again"
            )

    def _offset(self, tensor: torch.Tensor) -> int:
        released = self._released.get(id(tensor))
        return released.offset if released is not None and released.is_as_released else offset_of(tensor)

    def state(self) -> dict[str, torch.Tensor]:
        """The denoiser's tensors as they are now, by path; one that has several paths stands at each."""
        denoiser = self._denoiser()
        assert denoiser is not None  # whoever asks has it
        state: dict[str, torch.Tensor] = dict(denoiser.named_parameters(remove_duplicate=False))
        state.update(denoiser.named_buffers(remove_duplicate=False))
        return state


def _memory(tensor: torch.Tensor) -> int:
    """Where the memory begins that it lies in."""
    return tensor.untyped_storage().data_ptr()


def _own_memory(tensor: torch.Tensor, offset: int) -> None:
    tensor.data = at_offset(tensor.detach().clone(), offset)


def _can_be_view(tensor: torch.Tensor | None, dtype: torch.dtype) -> bool:
    if type(tensor) is not nn.Parameter or tensor.nbytes == 0:
        return False
    return tensor.dtype == dtype and tensor.is_floating_point() and tensor.is_contiguous()
