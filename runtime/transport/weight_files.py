"""WeightFiles: the safetensors files that a denoiser was loaded from, and tensors read or mapped from them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from partitioner.graph.ir import TensorMeta

_LINE = 64  # bytes of a cache line, at which torch's own allocations begin


@dataclass(frozen=True)
class FileState:
    """Which file it is, and when it was written last: what is different where a file may hold something else."""

    device: int
    number: int
    size: int
    written_ns: int

    @classmethod
    def of(cls, file: Path | int) -> FileState:
        """That of a path or of an open file's descriptor.

        Raises:
            OSError: there is no such file.
        """
        found = os.stat(file)
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


@dataclass(frozen=True)
class StoredTensor:
    """Where a file holds a tensor: the file, its state when it was read, and the dtype that the tensor has in it."""

    file: Path
    state: FileState
    dtype: torch.dtype


class WeightFiles:
    """The safetensors files that may hold a denoiser's tensors; which do is found out by comparing.

    They are those in the folder that from_pretrained was given, or right below it (``subfolder=``), and those that are
    mapped into this process, as from_pretrained leaves them on a cpu.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self._folder = str(getattr(getattr(denoiser, "config", None), "_name_or_path", "") or "")

    def holding(self, name: str, tensor: torch.Tensor) -> StoredTensor | None:
        """A file that holds exactly these values under that name; in the same dtype, where there is one."""
        found = None
        if type(tensor.data) is not torch.Tensor:  # of parts, such as a quantized one
            return None
        for file in self._files_of.get(name, ()):
            with suppress(OSError, SafetensorError):
                state = FileState.of(file)
                stored = _mapped(file, name)
                if stored.shape == tensor.shape and _same_bytes(stored, tensor):
                    found = StoredTensor(file, state, stored.dtype)
                    if stored.dtype == tensor.dtype:
                        break
        return found

    @cached_property
    def _files_of(self) -> Mapping[str, Sequence[Path]]:
        """Tensor name -> files that have such a name: shards, and variants in other dtypes."""
        found: dict[str, list[Path]] = {}
        for file in dict.fromkeys((*_files_in(self._folder), *_mapped_files())):
            with suppress(OSError, SafetensorError), safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 # it is no mapping
                    found.setdefault(name, []).append(file)
        return found


def _files_in(folder: str) -> list[Path]:
    if not folder or not Path(folder).is_dir():
        return []
    return [*sorted(Path(folder).glob("*.safetensors")), *sorted(Path(folder).glob("*/*.safetensors"))]


def _mapped_files() -> list[Path]:
    """Files of weights that this process has mapped; none on systems that do not tell."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return []
    paths = (line.split(maxsplit=5)[-1] for line in maps.splitlines())
    return sorted({Path(path) for path in paths if path.endswith(".safetensors")})


class MappedFile:
    """Tensors that lie in a file, mapped and not read: memory is taken only where they are read.

    They may be written to: the file does not change by that. Where the file is written to, they change.
    """

    def __init__(self, file: Path, state: FileState, names: Sequence[str]) -> None:
        """Map the tensors.

        Raises:
            OSError: the file is not there any more, or not as ``state`` says.
        """
        self.file = file
        self._state = state
        self._descriptor = os.open(file, os.O_RDONLY)  # so that it can be asked of when it has no name any more
        try:
            with safe_open(file, framework="pt") as opened:
                self.tensors = {name: _alone(opened.get_tensor(name)) for name in names}
            if self.is_changed or FileState.of(file) != state:
                raise OSError(f"{file} was written to")
        except BaseException:
            self.close()
            raise

    @property
    def is_changed(self) -> bool:
        """Whether it was written to, so that the tensors are not what they were."""
        return FileState.of(self._descriptor) != self._state

    def close(self) -> None:
        """Forget the file; its tensors are there as long as somebody has them."""
        os.close(self._descriptor)


def read_stored(file: Path, name: str, meta: TensorMeta, offset: int = 0) -> torch.Tensor:
    """Read a tensor of a safetensors file into memory of its own.

    Args:
        file: the safetensors file.
        name: of the tensor in it.
        meta: the shape, strides and dtype that it is to have.
        offset: where its memory is to begin, see ``at_offset``.
    """
    made = torch.empty_strided(meta.shape, meta.stride, dtype=getattr(torch, meta.dtype))
    return at_offset(made.copy_(_mapped(file, name)), offset)


def digest_of(file: Path, name: str) -> str | None:
    """SHA-256 of a tensor of a safetensors file, its dtype and shape; None where there is no such file or tensor."""
    try:
        stored = _mapped(file, name)
    except (OSError, SafetensorError):
        return None
    digest = hashlib.sha256(f"{stored.dtype}{list(stored.shape)}".encode())
    digest.update(_bytes(stored).numpy().data)
    return digest.hexdigest()


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


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in the same memory, as if that held nothing else: who saves it looks at all that its storage holds."""
    return torch.from_numpy(_bytes(tensor).numpy()).view(tensor.dtype).view(tensor.shape)


def _same_bytes(stored: torch.Tensor, tensor: torch.Tensor) -> bool:
    """Whether they are the same after conversion to the dtype; a NaN is, and a negative zero is not zero."""
    converted = stored.to(tensor.device, tensor.dtype)
    return torch.equal(_bytes(converted), _bytes(tensor.detach()))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
