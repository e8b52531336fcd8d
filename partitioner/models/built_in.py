"""built_in: what is known of the models that have a name here; no weights and no network are needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from profiles.json_files import read_json

_FOLDER = Path(__file__).parent / "data"
BUILT_IN = tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A published model.

    Attributes:
        class_name: A model class of diffusers.
        published_as: Where it is published.
        config: Configuration of the denoiser.
        pipeline: Configuration of its pipeline, as in a model_index.json: class, scheduler and settings.
        steps: Of one generation, by the pipeline's default.
        guidance_scale: The pipeline's default.
        parameters: How many the denoiser has.
        tokens: Of one image or video at the default size; of a UNet the pixels of its latent.
        vae: Configuration of its VAE, where its class's usual one does not do.
        sizes: Default height, width and frames, where they are not those of its class.
        note: What else one should know, as a sentence without a full stop.
    """

    class_name: str
    published_as: str
    config: Mapping[str, Any]
    pipeline: Mapping[str, Any]
    steps: int
    guidance_scale: float
    parameters: int
    tokens: int
    vae: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    note: str | None = None


@lru_cache
def built_in(name: str) -> BuiltIn:
    """What is known of the model of that name, one of BUILT_IN.

    >>> built_in("flux2").steps, built_in("flux2").guidance_scale
    (50, 4.0)
    """
    document: Any = read_json(_FOLDER / f"{name}.json", 1_000_000)
    return BuiltIn(**document)
