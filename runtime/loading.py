"""load_pipeline: loads a diffusers pipeline from a folder, the hub or a single file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from partitioner.errors import UsageError
from partitioner.library import cause_of, library_call
from partitioner.models.config_bounds import check_sizes
from partitioner.models.parameter_bound import MOST_OF_PIPELINE, bounded_parameters
from profiles.json_files import JsonFileError, read_json
from runtime.memory_bound import bounded_memory

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".msgpack", ".h5")
_TEXTS = (".json", ".txt", ".model")  # which are read whole
_MOST_TEXT_BYTES = 256 << 20  # the largest, of tokenizers, have some 40 MB
_MOST_CONFIG_BYTES = 1_000_000
_MOST_DEPTH = 3  # folders in folders; parts are in the first, and parts of parts
# How many times what its files hold a pipeline may have, and what any may
_MOST_MORE, _ALWAYS = 4, 256  # parameters: shared ones, and parts of one tensor
_MOST_GROWTH, _ALWAYS_BYTES = 16, 256 << 20  # bytes: weights of 4 bits as 32, and shared ones
_ALWAYS_MEMORY, _THREAD_MEMORY = 768 << 20, 16 << 20  # bytes that libraries take for themselves, and stacks


def load_pipeline(
    source: str | os.PathLike[str], dtype: torch.dtype, *, variant: str | None = None, config: str | None = None
) -> Any:
    """Load a diffusers pipeline.

    Args:
        source: a saved pipeline's folder, a hub id such as "owner/name", or a single file (.safetensors, .ckpt).
        dtype: of the parameters.
        variant: of the weights' files, such as "fp16"; not for a single file.
        config: for a single file, the folder or hub id of a pipeline with its configuration. Default: the published
            model that diffusers takes the file for, whose configuration must be in the hub's local cache or reachable.

    Raises:
        UsageError: what is there cannot be loaded, or is of absurd size; or a file is given with a variant, or a
            configuration without a file.
    """
    path = Path(source)
    if path.is_file():
        if variant is not None:
            raise UsageError(f"{source} is a single file, which has no variant {variant}")
        size = path.stat().st_size
        with _bounded(source, size), _bounded_memory(source, size), library_call(f"{source} cannot be loaded"):
            return _from_file(str(source), dtype, config)
    if config is not None:
        raise UsageError(f"{source} is not a single file, and has its own configuration instead of {config}")
    if not path.is_dir():
        with _bounded(source, None), library_call(f"{source} cannot be loaded"):
            return _from_hub(str(source), dtype, variant)
    files = list(_files_of(path))
    for file in files:
        check_sizes(file)
        _check_shards(path, file)
    weights = [file for file in files if file.suffix in _WEIGHTS]
    bounded = _bounded(source, sum(file.stat().st_size for file in weights), _tensors_in(weights))
    memory = _bounded_memory(source, sum(file.stat().st_size for file in files))
    try:
        with bounded, memory, library_call(f"{source} cannot be loaded"):
            return _from_folder(path, dtype, variant)
    except JsonFileError as error:  # of the index
        raise UsageError(f"{source} cannot be loaded: {error}") from error
    except UsageError as error:
        raise UsageError(f"{error}{_unreadable(files)}") from (error.__cause__ or error)


def _bounded(
    source: object, weights_bytes: int | None, tensors: int = MOST_OF_PIPELINE
) -> AbstractContextManager[None]:
    """Inside it a pipeline may have as many parameters as one with such weights can have."""
    most_bytes = None if weights_bytes is None else _ALWAYS_BYTES + _MOST_GROWTH * weights_bytes
    return bounded_parameters(str(source), min(MOST_OF_PIPELINE, _ALWAYS + _MOST_MORE * tensors), most_bytes)


def _bounded_memory(source: object, files_bytes: int) -> AbstractContextManager[None]:
    """Inside it a pipeline may take as much memory as one with such files can take, tables included."""
    always = _ALWAYS_MEMORY + _THREAD_MEMORY * torch.get_num_threads()
    return bounded_memory(str(source), always + _MOST_GROWTH * files_bytes)


def _tensors_in(weights: Iterable[Path]) -> int:
    """How many tensors files of weights hold; as many as any pipeline where one of them does not tell."""
    count = 0
    for file in weights:
        try:
            with safe_open(file, framework="pt") as opened:
                count += len(opened.keys())
        except (OSError, SafetensorError, MemoryError):
            return MOST_OF_PIPELINE
    return count


def _files_of(folder: Path) -> Iterator[Path]:
    """The files of a pipeline's folder and of the folders in it, links followed.

    Raises:
        UsageError: what a library would read is no file but something that never ends, or too large; or a folder
            cannot be looked into.
    """
    waiting = [(folder, 0)]
    seen: set[tuple[int, int]] = set()
    while waiting:
        place, depth = waiting.pop()
        try:
            files = sorted(place.iterdir())
        except OSError as error:
            raise UsageError(f"{folder} cannot be loaded: {cause_of(error)}") from error
        for file in files:
            try:
                info = file.stat()
            except OSError:  # a link that leads nowhere; whoever needs it says so
                continue
            if stat.S_ISDIR(info.st_mode):
                if depth < _MOST_DEPTH and (info.st_dev, info.st_ino) not in seen:
                    seen.add((info.st_dev, info.st_ino))
                    waiting.append((file, depth + 1))
                continue
            if not stat.S_ISREG(info.st_mode):
                raise UsageError(f"{folder} cannot be loaded: {file} is no file but a device, a pipe or a socket")
            if file.suffix in _TEXTS and info.st_size > _MOST_TEXT_BYTES:
                raise UsageError(
                    f"{folder} cannot be loaded: {file} has {info.st_size} bytes; expected at most {_MOST_TEXT_BYTES}"
                )
            yield file


def _check_shards(folder: Path, file: Path) -> None:
    """Refuse an index of weights that names files elsewhere than beside it: diffusers 0.39 would read them."""
    if ".index." not in file.name or file.suffix != ".json":
        return
    try:
        document = read_json(file, _MOST_TEXT_BYTES)
    except JsonFileError:  # whoever needs it says so
        return
    names = document.get("weight_map") if isinstance(document, dict) else None
    for name in names.values() if isinstance(names, dict) else ():
        if isinstance(name, str) and os.path.basename(name) != name:
            raise UsageError(
                f"{folder} cannot be loaded: {file} has weights in {name!r}; expected the name of a file beside it"
            )


def _unreadable(files: Iterable[Path]) -> str:
    """Which of a pipeline's files cannot be read, which libraries often do not tell; "" where all can."""
    for file in files:
        try:
            if file.suffix == ".json" and file.stat().st_size <= _MOST_CONFIG_BYTES:
                document = read_json(file, _MOST_CONFIG_BYTES)
                if file.name.endswith(".safetensors.index.json") and not _is_index(document):
                    return f' ({file} is no index of weights: expected "metadata", and a "weight_map" to file names)'
            elif file.suffix == ".safetensors":
                with safe_open(file, framework="pt"):
                    pass
        except JsonFileError as error:
            return f" ({error})"
        except (OSError, SafetensorError, MemoryError) as error:
            return f" ({file} is no safetensors file: {cause_of(error)})"
    return ""


def _is_index(document: object) -> bool:
    """Whether a document is one beside weights in several files: {"metadata": {}, "weight_map": {tensor: file}}."""
    if not isinstance(document, dict) or not isinstance(document.get("metadata"), dict):
        return False
    files = document.get("weight_map")
    return isinstance(files, dict) and all(isinstance(file, str) for file in files.values())


def _from_folder(folder: Path, dtype: torch.dtype, variant: str | None) -> Any:
    from diffusers import DiffusionPipeline

    index = folder / "model_index.json"
    parts = read_json(index, _MOST_CONFIG_BYTES) if index.is_file() else {}
    if not isinstance(parts, dict):
        raise UsageError(f"{index} holds no JSON object")
    # parts that the index says are missing (Stable Diffusion 3 without its third text encoder) diffusers would ask for
    missing = {name: None for name, what in parts.items() if what == [None, None]}
    return DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, variant=variant, **missing)


def _from_hub(hub_id: str, dtype: torch.dtype, variant: str | None) -> Any:
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(hub_id, torch_dtype=dtype, variant=variant)


def _from_file(file: str, dtype: torch.dtype, config: str | None) -> Any:
    import diffusers
    from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint

    if config is None:
        config = str(fetch_diffusers_config(load_single_file_checkpoint(file))["pretrained_model_name_or_path"])
    class_name = diffusers.DiffusionPipeline.load_config(config)["_class_name"]
    cls: Any = getattr(diffusers, class_name, None)
    if not hasattr(cls, "from_single_file"):
        raise UsageError(f"{config} is a {class_name}, which diffusers cannot load from a single file")
    return cls.from_single_file(file, config=config, torch_dtype=dtype)
