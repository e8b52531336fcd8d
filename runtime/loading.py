"""load_pipeline: loads a diffusers pipeline from a folder, the hub or a single file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch


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
        ValueError: the folder's model_index.json holds no JSON object, or a file is given with a variant, or a
            configuration without a file.
        OSError, ImportError, ValueError: as DiffusionPipeline.from_pretrained and from_single_file.
    """
    if Path(source).is_file():
        if variant is not None:
            raise ValueError(f"{source} is a single file, which has no variant {variant}")
        return _from_file(str(source), dtype, config)
    if config is not None:
        raise ValueError(f"{source} is not a single file, and has its own configuration instead of {config}")
    return _from_folder(source, dtype, variant)


def _from_folder(folder: str | os.PathLike[str], dtype: torch.dtype, variant: str | None) -> Any:
    from diffusers import DiffusionPipeline

    index = Path(folder, "model_index.json")
    parts = json.loads(index.read_text()) if index.is_file() else {}
    if not isinstance(parts, dict):
        raise ValueError(f"{index} holds no JSON object")
    # parts that the index says are missing (Stable Diffusion 3 without its third text encoder) diffusers would ask for
    missing = {name: None for name, what in parts.items() if what == [None, None]}
    return DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, variant=variant, **missing)


def _from_file(file: str, dtype: torch.dtype, config: str | None) -> Any:
    import diffusers
    from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint

    if config is None:
        config = str(fetch_diffusers_config(load_single_file_checkpoint(file))["pretrained_model_name_or_path"])
    class_name = diffusers.DiffusionPipeline.load_config(config)["_class_name"]
    cls: Any = getattr(diffusers, class_name, None)
    if not hasattr(cls, "from_single_file"):
        raise ValueError(f"{config} is a {class_name}, which diffusers cannot load from a single file")
    return cls.from_single_file(file, config=config, torch_dtype=dtype)
