"""build_pipeline and twin_of: the pipeline of a folder, and one in memory, without weights."""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from partitioner.errors import UsageError, first_line
from partitioner.models.build import build_denoiser, cast
from partitioner.models.config_bounds import check_sizes

if TYPE_CHECKING:
    from partitioner.models.stand_ins import StandIns


def build_pipeline(folder: Path, index: Mapping[str, Any], dtype: str, stand_ins: StandIns) -> Any:
    """A pipeline whose modules have no memory.

    Args:
        folder: Of the pipeline. Its configurations and the files of its tokenizers are read; weights are not.
        index: Its model_index.json.
        dtype: Of the modules: "float16", "bfloat16" or "float32".
        stand_ins: What makes its modules.

    Raises:
        UsageError: A part cannot be made of what is in the folder.
    """
    import diffusers

    class_name = str(index.get("_class_name"))
    cls = getattr(diffusers, class_name, None)
    if not (inspect.isclass(cls) and issubclass(cls, diffusers.DiffusionPipeline)):
        raise UsageError(f"diffusers {diffusers.__version__} has no pipeline {class_name}; a newer one may have it")
    arguments = {}
    for name in inspect.signature(cls.__init__).parameters:
        if name not in index or name == "self":
            continue
        entry = index[name]
        if isinstance(entry, (list, tuple)) and len(entry) == 2 and all(e is None or isinstance(e, str) for e in entry):
            arguments[name] = None if entry[1] is None else _part(folder, name, entry[0], entry[1], dtype, stand_ins)
        else:
            arguments[name] = entry
    try:
        return cls(**arguments)
    except Exception as error:
        raise UsageError(f"{folder} is no {class_name} that can be made: {first_line(error)}") from error


def _part(folder: Path, name: str, library: str, class_name: str, dtype: str, stand_ins: StandIns) -> Any:
    from torch import nn

    cls = _class_of(library, class_name, f"{folder} has a {name}")
    try:
        if issubclass(cls, nn.Module):
            if not (folder / name / "config.json").is_file():  # transformers would take defaults
                raise FileNotFoundError("it has no config.json.")
            return stand_ins.take(_module(folder / name, cls, dtype, stand_ins), name)
        for file in sorted((folder / name).glob("*.json")):
            check_sizes(file)
        return cls.from_pretrained(folder / name)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"the {name} of {folder}, a {class_name}, cannot be made without weights: {first_line(error)} Its "
            f"configuration and, of a tokenizer, its files are needed: download the folder but for its weights"
        ) from error


def _class_of(library: str, class_name: str, what: str) -> Any:
    """The class of a part; its library is diffusers, one of its pipelines, or transformers, and nothing else."""
    import diffusers

    if library in ("diffusers", "transformers"):
        owner: Any = importlib.import_module(library)
    else:
        owner = getattr(diffusers.pipelines, library, None)
    cls = getattr(owner, class_name, None)
    if not inspect.isclass(cls):
        raise UsageError(f"{what} of class {library}.{class_name}, which neither diffusers nor transformers has here")
    return cls


def _module(folder: Path, cls: Any, dtype: str, stand_ins: StandIns) -> Any:
    import diffusers
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        if issubclass(cls, diffusers.ModelMixin) and hasattr(diffusers, cls.__name__):
            config = cls.load_config(folder)
            with stand_ins.building():
                return build_denoiser(cls.__name__, config).eval()
        if issubclass(cls, diffusers.ConfigMixin):
            config = cls.load_config(folder)
            with stand_ins.building():
                return cls.from_config(config).eval()
        config = cls.config_class.from_pretrained(folder)
        with stand_ins.building():
            made = cls(config).eval()
            cast(made, torch.get_default_dtype())  # its parts are made in the dtype that the folder was saved in
            return made
    finally:
        torch.set_default_dtype(before)


def twin_of(pipe: Any, stand_ins: StandIns) -> Any:
    """A copy of a pipeline whose modules have no memory; calling it changes nothing of the pipeline itself."""
    return _twin(pipe, stand_ins, {})


def _twin(pipe: Any, stand_ins: StandIns, made_of: dict[int, Any]) -> Any:
    import diffusers
    from torch import nn

    made = copy.copy(pipe)
    for name, value in list(vars(pipe).items()):
        if id(value) not in made_of:
            if isinstance(value, nn.Module):
                made_of[id(value)] = stand_ins.twin(value, name)
            elif isinstance(value, diffusers.DiffusionPipeline):
                made_of[id(value)] = _twin(value, stand_ins, made_of)
        if id(value) in made_of:
            vars(made)[name] = made_of[id(value)]
    if "_all_hooks" in vars(made):
        vars(made)["_all_hooks"] = []  # of offloading, which ends and begins again with every call
    return made
