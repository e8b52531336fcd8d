"""WeightFiles: the safetensors files that a denoiser was loaded from, and tensors read or mapped from them."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from partitioner.errors import first_line
from partitioner.graph.nodes import TensorMeta
from partitioner.graph.tensor_digest import digest
from runtime.errors import WeightsChanged
from runtime.transport.mapped_memory import mapped_files

_LINE = 64  # bytes of a cache line, at which torch's own allocations begin


@dataclass(frozen=True)
class FileState:
    """Which file it is, and when it was written last: what is different where a file may hold something else.

    changed_ns: when anything about it was changed, its name or times included, which no program can set.
    """

    device: int
    number: int
    size: int
    written_ns: int
    changed_ns: int

    @classmethod
    def of(cls, file: Path | int) -> FileState:
        """That of a path or of an open file's descriptor.

        Raises:
            OSError: there is no such file.
        """
        found = os.stat(file)
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def may_hold_the_same(self, other: FileState) -> bool:
        """Whether nothing says that it was written to: it may have got another name or owner, or be deleted."""
        return (self.number, self.size, self.written_ns) == (other.number, other.size, other.written_ns)


class OpenFile:
    """A file that is kept open, so that it can be read and asked of when another has its name, or none.

    Attributes:
        file: its path when it was opened.
        descriptor: of it.
    """

    def __init__(self, file: Path) -> None:
        """Open it.

        Raises:
            OSError: it cannot be opened.
        """
        self.file = file
        self.descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        closing = weakref.finalize(self, os.close, self.descriptor)
        closing.atexit = False  # at the end of the program a block that was never left still reads it

    @property
    def state(self) -> FileState:
        """Its state now."""
        return FileState.of(self.descriptor)

    @property
    def path(self) -> Path:
        """A path by which this user's processes on this machine reach it as long as it is open."""
        own = Path(f"/proc/{os.getpid()}/fd/{self.descriptor}")
        return own if own.exists() else self.file


@dataclass(frozen=True)
class StoredTensor:
    """Where a file holds a tensor.

    Attributes:
        opened: the file.
        state: of the file when the tensor was read.
        dtype: that the tensor has in it.
        digest: of the tensor as it is in it.
    """

    opened: OpenFile
    state: FileState
    dtype: torch.dtype
    digest: str | None

    @property
    def file(self) -> Path:
        """The file's path."""
        return self.opened.file


class WeightFiles:
    """The safetensors files that may hold a denoiser's tensors; which do is found out by comparing.

    They are those in the folder that from_pretrained was given, or right below it (``subfolder=``), and those that are
    mapped into this process, as from_pretrained leaves them on a cpu.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self._folder = str(getattr(getattr(denoiser, "config", None), "_name_or_path", "") or "")
        self._opened: dict[Path, OpenFile] = {}

    def holding(self, name: str, tensor: torch.Tensor) -> StoredTensor | None:
        """A file that holds exactly these values under that name; in the same dtype, where there is one."""
        found = None
        if type(tensor.data) is not torch.Tensor:  # of parts, such as a quantized one
            return None
        for file in self._files_of.get(name, ()):
            with suppress(OSError, SafetensorError):
                opened = self._open(file)
                state = opened.state
                stored = _mapped(opened.path, name)
                if stored.shape == tensor.shape and _same_bytes(stored, tensor):
                    found = StoredTensor(opened, state, stored.dtype, digest(stored))
                    if stored.dtype == tensor.dtype:
                        break
        return found

    def close(self) -> None:
        """Keep no file open any longer but those that somebody else has."""
        self._opened.clear()

    def _open(self, file: Path) -> OpenFile:
        opened, now = self._opened.get(file), FileState.of(file)
        if opened is None or (opened.state.device, opened.state.number) != (now.device, now.number):
            opened = self._opened[file] = OpenFile(file)
        return opened

    @cached_property
    def _files_of(self) -> Mapping[str, Sequence[Path]]:
        """Tensor name -> files that have such a name: shards, and variants in other dtypes."""
        found: dict[str, list[Path]] = {}
        for file in dict.fromkeys((*_files_in(self._folder), *mapped_files(".safetensors"))):
            with suppress(OSError, SafetensorError):
                for name in _names_in(file) if file.is_file() else ():  # a pipe would be waited for
                    found.setdefault(name, []).append(file)
        return found


def _names_in(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def _files_in(folder: str) -> list[Path]:
    if not folder or not Path(folder).is_dir():
        return []
    return [*sorted(Path(folder).glob("*.safetensors")), *sorted(Path(folder).glob("*/*.safetensors"))]


class MappedFile:
    """Tensors that lie in a file, mapped and not read: memory is taken only where they are read.

    They may be written to: the file does not change by that. Where the file is written to, they change.

    Attributes:
        opened: the file.
        state: its state when the tensors were known to be what they were.
        tensors: by name.
    """

    def __init__(self, opened: OpenFile, state: FileState, names: Sequence[str]) -> None:
        """Map the tensors.

        Raises:
            OSError: the file is not as ``state`` says any more.
        """
        self.opened = opened
        self.state = state
        with safe_open(opened.path, framework="pt") as file:
            self.tensors = {name: _alone(file.get_tensor(name)) for name in names}
        if opened.state != state:
            raise OSError(f"{opened.file} was written to")


def read_stored(file: Path, name: str, meta: TensorMeta, offset: int, expected: str | None) -> torch.Tensor:
    """Read a tensor of a safetensors file into memory of its own.

    Args:
        file: the safetensors file.
        name: of the tensor in it.
        meta: the shape, strides and dtype that it is to have.
        offset: where its memory is to begin, see ``at_offset``.
        expected: its digest.

    Raises:
        WeightsChanged: the file holds something else, or cannot be read.
    """
    made = torch.empty_strided(meta.shape, meta.stride, dtype=getattr(torch, meta.dtype))
    try:
        stored = _mapped(file, name)
    except (OSError, SafetensorError) as error:
        raise WeightsChanged(
            f"{_name_of(file)} was to be read by a rank, and has no {name} any more ({first_line(error)}): "
            "load the pipeline again when nothing writes to its folder"
        ) from error
    if stored.shape == made.shape:
        made.copy_(stored)
    is_copy = made.dtype == stored.dtype and made.is_contiguous()  # then what was copied is what is looked at
    if stored.shape != made.shape or digest(made if is_copy else stored) != expected:
        raise WeightsChanged(
            f"{_name_of(file)} was written to before a rank could read {name} from it: load the pipeline again when "
            "nothing writes to its folder"
        )
    return at_offset(made, offset)


def digest_of(file: Path, name: str) -> str | None:
    """``digest`` of a tensor of a safetensors file; None where there is no such file or tensor."""
    try:
        return digest(_mapped(file, name))
    except (OSError, SafetensorError):
        return None


def offset_of(tensor: torch.Tensor) -> int:
    """How many bytes beyond a multiple of 64 its memory begins; 0 on other devices than the cpu."""
    return tensor.data_ptr() % _LINE if tensor.device.type == "cpu" else 0


def at_offset(tensor: torch.Tensor, offset: int) -> torch.Tensor:
    """The tensor, or a copy, that begins ``offset`` bytes beyond a multiple of 64.

    Matrix products sum in an order that depends on it, and tensors that were mapped from a file begin anywhere: a
    rank that is to give the driver's very bits needs the driver's offset. Where strides leave gaps it stays as it is.
    """
    dense = tensor.untyped_storage().nbytes() == tensor.nbytes
    if tensor.device.type != "cpu" or not dense or offset_of(tensor) == offset or offset % tensor.element_size():
        return tensor
    room = _alone(torch.empty(offset + tensor.nbytes, dtype=torch.uint8)[offset:])
    return room.view(tensor.dtype).as_strided(tensor.shape, tensor.stride()).copy_(tensor)


def _mapped(file: Path, name: str) -> torch.Tensor:
    """A tensor of a file in a mapping of its own, so that its memory goes with it."""
    with safe_open(file, framework="pt") as opened:
        tensor: torch.Tensor = opened.get_tensor(name)
        return tensor


def _name_of(file: Path) -> str:
    """The path of a file that is named by a descriptor of a process."""
    return os.readlink(file) if file.is_symlink() and file.is_relative_to("/proc") else str(file)


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in the same memory, as if that held nothing else: who saves it looks at all that its storage holds."""
    return torch.from_numpy(_bytes(tensor).numpy()).view(tensor.dtype).view(tensor.shape)


def _same_bytes(stored: torch.Tensor, tensor: torch.Tensor) -> bool:
    """Whether they are the same after conversion to the dtype; a NaN is, and a negative zero is not zero."""
    converted = stored.to(tensor.device, tensor.dtype)
    return torch.equal(_bytes(converted), _bytes(tensor.detach()))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
