"""load_pipeline: loads a diffusers pipeline, with the parts that its folder says are missing left out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch


def load_pipeline(folder: str | os.PathLike[str], dtype: torch.dtype) -> Any:
    """Load a diffusers pipeline.

    Parts that the folder's index says are missing (Stable Diffusion 3 without its third text encoder) are passed on as
    None: diffusers itself would ask for them.

    Args:
        folder: a saved pipeline, or a hub id such as "owner/name".
        dtype: of the parameters.

    Raises:
        ValueError: the folder's model_index.json holds no JSON object.
        OSError, ImportError, ValueError: as DiffusionPipeline.from_pretrained.
    """
    from diffusers import DiffusionPipeline

    index = Path(folder, "model_index.json")
    parts = json.loads(index.read_text()) if index.is_file() else {}
    if not isinstance(parts, dict):
        raise ValueError(f"{index} holds no JSON object")
    missing = {name: None for name, what in parts.items() if what == [None, None]}
    return DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, **missing)
