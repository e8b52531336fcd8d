"""Mutations of a pipeline's folder: of one of its files' content, or of what lies in the file's place."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file, save_file

from tools.mutate.documents import damaged, mutated_json


def mutate_folder(folder: Path, random: Random) -> str:
    """Mutate one or two of the files that are no weights; returns what was done."""
    done: list[str] = []
    mutated: set[Path] = set()
    for _ in range(random.choice((1, 1, 2))):
        files = sorted(path for path in folder.rglob("*") if path.suffix != ".safetensors" and path.is_file())
        files = [file for file in files if file not in mutated]
        # tokenizers have most files and values, and say the least
        weights = [1 if "tokenizer" in file.parent.name else 4 for file in files]
        if not files:
            break
        file = random.choices(files, weights)[0]
        mutated.add(file)
        if random.random() < 0.2:
            what = _replace(file, random, _REPLACEMENTS)
        else:
            is_json = file.suffix == ".json"
            data, what = (mutated_json if is_json else damaged)(file.read_bytes(), random)
            file.write_bytes(data)
        done.append(f"{file.relative_to(folder)}: {what}")
    return "; ".join(done)


def mutate_weights(folder: Path, random: Random) -> str:
    """Mutate one of the safetensors files, or put something else in its place; returns what was done."""
    file = random.choice(sorted(folder.rglob("*.safetensors")))
    data = file.read_bytes()
    choice = random.random()
    if choice < 0.15:
        what = _replace(file, random, _REPLACEMENTS | _PICKLES)
    elif choice < 0.3:
        what = _index(file, random)
    elif choice < 0.45:
        what = _other_tensors(file, random)
    elif choice < 0.75:
        size = int.from_bytes(data[:8], "little")
        header, what = mutated_json(data[8 : 8 + size], random)
        file.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + size :])
    elif choice < 0.85:
        size = random.choice((0, 1, 2**20, 2**40, 2**63, 2**64 - 1, random.randrange(len(data))))
        file.write_bytes(struct.pack("<Q", size) + data[8:])
        what = f"a header of {size} bytes"
    else:
        damage, what = damaged(data, random)
        file.write_bytes(damage)
    return f"{file.relative_to(folder)}: {what}"


def _other_tensors(file: Path, random: Random) -> str:
    """Make one of the tensors another one, in a file that is sound by itself."""
    tensors = load_file(file)
    name = random.choice(sorted(tensors))
    change = random.choice(sorted(_CHANGES))
    made = _CHANGES[change](tensors.pop(name))
    tensors |= {key.format(name): tensor.contiguous() for key, tensor in made.items()}
    save_file(tensors, file, {"format": "pt"})
    return f"the tensor {name} {change}"


def _index(file: Path, random: Random) -> str:
    """Make the weights two files with an index, which says something wrong; or add a stray one."""
    index = file.with_name(f"{file.name}.index.json")
    names = list(load_file(file))
    first = file.with_name(f"{file.stem}-00001-of-00001.safetensors")
    target = random.choice((first.name, file.name, "missing.safetensors", "../../model_index.json", "/etc/hostname"))
    document = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, target)}
    data, what = json.dumps(document).encode(), "right"
    if random.random() < 0.7:
        data, what = mutated_json(data, random)
    index.write_bytes(data)
    if random.random() < 0.5:
        file.rename(first)
        return f"an index to {target}, {what}, and the file renamed"
    return f"an index to {target}, {what}, beside the file"


def _replace(file: Path, random: Random, replacements: Mapping[str, Replacement]) -> str:
    """Put something else in a file's place."""
    name = random.choice(sorted(replacements))
    kept = file.read_bytes()
    file.unlink()
    replacements[name](file, kept)
    return name


def _parts_link(file: Path, _kept: bytes) -> None:
    """Its folder becomes a link to the folder above, so that paths go round."""
    if file.name != "model_index.json":  # whose folder is the whole
        shutil.rmtree(file.parent)
        file.parent.symlink_to("..")


def _parts_file(file: Path, _kept: bytes) -> None:
    shutil.rmtree(file.parent)
    file.parent.touch()


def _unreadable(file: Path, kept: bytes) -> None:  # but for root
    file.write_bytes(kept)
    file.chmod(0)


class _Hostile:
    """What runs code where it is unpickled: the code makes a file, which is found then."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("made-by-a-pickle", "w")


def _pickled(file: Path) -> Path:
    """The name that pickled weights have, which libraries read where there is no safetensors file."""
    return file.with_name("pytorch_model.bin" if file.stem == "model" else f"{file.stem}.bin")


Replacement = Callable[[Path, bytes], object]
_PICKLES: dict[str, Replacement] = {
    "a hostile pickle": lambda file, kept: _pickled(file).write_bytes(pickle.dumps({"a": _Hostile()})),
    "a hostile archive": lambda file, kept: torch.save({"a": _Hostile()}, _pickled(file)),
    "junk for a pickle": lambda file, kept: _pickled(file).write_bytes(kept[:99]),
}
_CHANGES: dict[str, Callable[[torch.Tensor], dict[str, torch.Tensor]]] = {  # {} stands for its name
    "left out": lambda tensor: {},
    "renamed": lambda tensor: {"{}x": tensor},
    "twice": lambda tensor: {"{}": tensor, "{}x": tensor.clone()},
    "with a dimension more": lambda tensor: {"{}": tensor[None]},
    "flat": lambda tensor: {"{}": tensor.flatten()},
    "the other way round": lambda tensor: {"{}": tensor.reshape(tensor.shape[::-1])},
    "longer": lambda tensor: {"{}": torch.cat([tensor, tensor])},
    "empty": lambda tensor: {"{}": tensor[:0]},
    "of whole numbers": lambda tensor: {"{}": tensor.to(torch.int32)},
    "of bytes": lambda tensor: {"{}": tensor.to(torch.uint8)},
    "of 64 bits": lambda tensor: {"{}": tensor.to(torch.float64)},
    "of 16 bits": lambda tensor: {"{}": tensor.to(torch.bfloat16)},
    "of 8 bits": lambda tensor: {"{}": tensor.to(torch.float8_e4m3fn)},
    "not a number": lambda tensor: {"{}": tensor * float("nan")},
    "of large numbers": lambda tensor: {"{}": tensor * 1e30},
}
_REPLACEMENTS: dict[str, Replacement] = {
    "missing": lambda file, kept: None,
    "empty": lambda file, kept: file.touch(),
    "a folder": lambda file, kept: file.mkdir(),
    "a link to itself": lambda file, kept: file.symlink_to(file.name),
    "a link to nothing": lambda file, kept: file.symlink_to("nothing"),
    "a link to its folder": lambda file, kept: file.symlink_to("."),
    "a link to a device": lambda file, kept: file.symlink_to("/dev/zero"),
    "a pipe": lambda file, kept: os.mkfifo(file),
    "a part's folder that is a link to the whole": _parts_link,
    "a part's folder that is missing": lambda file, kept: shutil.rmtree(file.parent),
    "a part's folder that is a file": _parts_file,
    "a file that may not be read": _unreadable,
    "a large file of zeros": lambda file, kept: os.truncate(_touched(file), 3 << 30),
    "json of another kind": lambda file, kept: file.write_text('["a", 1]'),
}


def _touched(file: Path) -> Path:
    file.touch()
    return file
