"""Weights: a denoiser's parameters, in the driver's memory and in the files that they were loaded from.

Where a file holds exactly what is in memory, ranks read what they need from it themselves, all at the same time; the
rest (a LoRA that was fused, say) is sent to them. While they run, the driver releases the memory of parameters that
other ranks hold and that can be read again from a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.utils.hooks import RemovableHandle

from partitioner.graph.export import fake_mode
from partitioner.graph.ir import Parameter, TensorMeta
from runtime.devices.memory import give_back
from runtime.errors import EngineError, PlanMismatch

_LINE = 64  # bytes of a cache line, at which torch's own allocations begin
_FILES = ("diffusion_pytorch_model*.safetensors", "model*.safetensors")


class Weights:
    """The parameters and buffers of one denoiser, by path in its state."""

    def __init__(self, denoiser: nn.Module) -> None:
        self._denoiser = denoiser
        self._file_of = _files_of(denoiser)
        self._same: dict[str, bool] = {}  # whether the file holds what is in memory
        self._released: dict[str, torch.Tensor] = {}  # path -> what has its shape, dtype and device, and no memory
        self._offset_of: dict[str, int] = {}  # path of a released parameter -> see offset_of
        self._guard: RemovableHandle | None = None  # refuses calls of a denoiser that lacks parameters
        self._tracing = False

    @property
    def released(self) -> frozenset[str]:
        """Paths of the parameters that the driver's memory does not hold now."""
        return frozenset(self._released)

    def files_of(self, wanted: Sequence[Parameter]) -> dict[str, Path]:
        """path -> the file that holds exactly that tensor, for those of the parameters that a file holds."""
        return {p.path: self._file_of[p.path] for p in wanted if p.path in self._released or self._is_in_file(p.path)}

    def tensors_of(self, wanted: Sequence[Parameter]) -> dict[str, torch.Tensor]:
        """path -> the denoiser's own tensor, not a copy, in the order of ``wanted``; read again where it was released.

        Raises:
            PlanMismatch: the denoiser has no such parameter or buffer.
        """
        state = self._state()
        found: dict[str, torch.Tensor] = {}
        for parameter in wanted:
            path = parameter.path
            if path in self._released:
                stored = read_stored(self._file_of[path], path, parameter.meta, self._offset_of[path])
                found[path] = stored.to(state[path].device)
            elif path in state:
                found[path] = state[path].detach()
            else:
                raise PlanMismatch(f"the denoiser has no parameter or buffer {path}, which its graph reads")
        return found

    def offsets_of(self, wanted: Sequence[Parameter]) -> tuple[int, ...]:
        """How far the driver's tensors begin beyond a multiple of 64 bytes, see ``offset_of``; 0 for what it lacks."""
        state = self._state()
        return tuple(
            self._offset_of[p.path] if p.path in self._released else offset_of(state[p.path]) if p.path in state else 0
            for p in wanted
        )

    def take_out(self, wanted: Sequence[Parameter]) -> None:
        """Copy parameters out of the mapped file that they may lie in, so that they do not keep all of it in memory."""
        parameters = dict(self._denoiser.named_parameters())
        for path in [p.path for p in wanted if p.path in parameters and p.path not in self._released]:
            if self._is_in_file(path):
                mapped = parameters[path].detach()
                parameters[path].data = at_offset(mapped.clone(), offset_of(mapped))

    def release(self, kept: set[str]) -> None:
        """Release the memory of every parameter that can be read again from a file. kept: paths not to release."""
        state = self._state()
        storages = {state[path].untyped_storage().data_ptr() for path in kept if path in state}
        for path, parameter in self._denoiser.named_parameters():
            shared = parameter.untyped_storage().data_ptr() in storages
            if path not in kept and not shared and path not in self._released and self._is_in_file(path):
                self._offset_of[path] = offset_of(parameter)
                self._released[path] = parameter.detach().to("meta")
                parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
        give_back()
        if self._released and self._guard is None:
            self._guard = self._denoiser.register_forward_pre_hook(self._refuse)

    def _refuse(self, denoiser: nn.Module, _args: Any) -> None:
        if not self._tracing:
            raise EngineError(
                f"this {type(denoiser).__name__} is run by an engine now, whose ranks hold its parameters: call the "
                "pipeline or the engine instead, close the engine first, or start it with keep_weights=True"
            )

    def restore(self) -> None:
        """Read again what was released.

        Raises:
            EngineError: a file cannot be read; the message names it. The denoiser then lacks the parameter.
        """
        parameters = dict(self._denoiser.named_parameters())
        for path in list(self._released):
            like = self._released[path]
            meta = TensorMeta(tuple(like.shape), tuple(like.stride()), str(like.dtype).removeprefix("torch."))
            try:
                stored = read_stored(self._file_of[path], path, meta, self._offset_of[path])
            except (OSError, SafetensorError) as error:
                raise EngineError(
                    f"the parameter {path} cannot be read back from {self._file_of[path]} ({error}); load the "
                    "pipeline again"
                ) from error
            parameters[path].data = stored.to(parameters[path].device)
            del self._released[path]
        if self._guard is not None:
            self._guard.remove()
            self._guard = None

    @contextmanager
    def traceable(self) -> Iterator[None]:
        """A context in which the denoiser can be traced, whatever was released and whatever device it is on.

        Where it is whole and on a cpu, nothing is done; otherwise its tensors are replaced by fake ones on the cpu, for
        which operators are traced as they are for plans. Make the example inputs inside, too.
        """
        first = next(self._denoiser.parameters(), None)
        if not self._released and (first is None or first.device.type == "cpu"):
            yield
            return
        swapped: list[tuple[dict[str, torch.Tensor | None], str, torch.Tensor]] = []
        with fake_mode():
            fakes: dict[int, torch.Tensor] = {}
            self._tracing = True
            try:
                for prefix, module in self._denoiser.named_modules():
                    for slots in (module._parameters, module._buffers):
                        for name, tensor in slots.items():
                            if tensor is None:
                                continue
                            like = self._released.get(f"{prefix}.{name}" if prefix else name, tensor)
                            if id(tensor) not in fakes:
                                fake = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype)
                                fakes[id(tensor)] = (
                                    nn.Parameter(fake, tensor.requires_grad) if slots is module._parameters else fake
                                )
                            swapped.append((slots, name, tensor))
                            slots[name] = fakes[id(tensor)]
                yield
            finally:
                self._tracing = False
                for slots_, name, tensor in swapped:
                    slots_[name] = tensor

    def _state(self) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = dict(self._denoiser.named_parameters(remove_duplicate=False))
        state.update(self._denoiser.named_buffers(remove_duplicate=False))
        return state

    def _is_in_file(self, path: str) -> bool:
        if path not in self._same:
            tensor = self._state().get(path)
            self._same[path] = (
                path in self._file_of and tensor is not None and _holds(self._file_of[path], path, tensor)
            )
        return self._same[path]


def read_stored(file: Path, name: str, meta: TensorMeta, offset: int = 0) -> torch.Tensor:
    """Read a tensor of a safetensors file into memory of its own.

    Args:
        file: the safetensors file.
        name: of the tensor in it.
        meta: the shape, strides and dtype that it is to have.
        offset: where its memory is to begin, see ``at_offset``.
    """
    with safe_open(file, framework="pt") as opened:
        stored = opened.get_tensor(name)
    made = torch.empty_strided(meta.shape, meta.stride, dtype=getattr(torch, meta.dtype))
    return at_offset(made.copy_(stored), offset)


def digest_of(file: Path, name: str) -> str | None:
    """SHA-256 of a tensor of a safetensors file, its dtype and shape; None where there is no such file or tensor."""
    try:
        with safe_open(file, framework="pt") as opened:
            stored = opened.get_tensor(name)
    except (OSError, SafetensorError):
        return None
    digest = hashlib.sha256(f"{stored.dtype}{list(stored.shape)}".encode())
    digest.update(stored.contiguous().view(-1).view(torch.uint8).numpy())
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
    room = torch.empty(offset + tensor.nbytes, dtype=torch.uint8)[offset:]
    return room.view(tensor.dtype).as_strided(tensor.shape, tensor.stride()).copy_(tensor)


def _holds(file: Path, name: str, tensor: torch.Tensor) -> bool:
    with safe_open(file, framework="pt") as opened:
        stored = opened.get_tensor(name)
    return stored.shape == tensor.shape and torch.equal(stored.to(tensor.device, tensor.dtype), tensor.detach())


def _files_of(denoiser: nn.Module) -> Mapping[str, Path]:
    """Tensor name -> safetensors file, for a denoiser that from_pretrained loaded from a folder; else nothing."""
    folder = Path(str(getattr(getattr(denoiser, "config", None), "_name_or_path", "") or ""))
    if not folder.parts or not folder.is_dir():
        return {}
    for pattern in _FILES:
        index = next(iter(sorted(folder.glob(pattern + ".index.json"))), None)
        files = sorted(folder.glob(pattern))
        if index is not None:
            names = json.loads(index.read_text())["weight_map"]
            return {name: folder / file for name, file in names.items() if (folder / file).is_file()}
        if files:
            # without an index the shortest name is the plain one, the others are variants of it
            plain = min(files, key=lambda file: len(file.name))
            with safe_open(plain, framework="pt") as opened:
                return dict.fromkeys(opened.keys(), plain)
    return {}
