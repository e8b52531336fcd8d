"""Subject: one small pipeline that features are tried on, with the files that they load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.small_pipelines import load, saved

PIPELINES = {
    "StableDiffusion": "stable_diffusion",
    "StableDiffusionXL": "stable_diffusion_xl",
    "StableDiffusion3": "stable_diffusion_3",
    "Flux": "flux",
    "AnimateDiff": "animatediff",
}


class NotApplicable(Exception):
    """A pipeline has no such feature; the text says what is missing."""


class Store:
    """Makes each thing once, by key: saved pipelines, LoRA files, plans."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: dict[Any, Any] = {}

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` returned the first time."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


class Subject:
    """A fresh small pipeline with the weights of seed 0."""

    def __init__(self, name: str, store: Store) -> None:
        """Load it.

        Args:
            name: a key of PIPELINES.
            store: where files are, shared by all subjects of a run.
        """
        self.name = name
        self.store = store
        source = store.once(("saved", name), lambda: saved(PIPELINES[name], store.folder))
        self.pipe: Any = load(source)

    @property
    def denoiser_name(self) -> str:
        """The attribute that holds its denoiser."""
        return "transformer" if getattr(self.pipe, "transformer", None) is not None else "unet"

    @property
    def denoiser(self) -> Any:
        """What the pipeline calls now."""
        return getattr(self.pipe, self.denoiser_name)

    def need(self, owner: Any, *names: str) -> None:
        """Go on only if an object has these attributes.

        Raises:
            NotApplicable: it lacks one.
        """
        for name in names:
            if not hasattr(owner, name):
                raise NotApplicable(f"{type(owner).__name__} has no {name}")

    def only(self, why: str, *names: str) -> None:
        """Go on only with one of the pipelines named.

        Raises:
            NotApplicable: it is another.
        """
        if self.name not in names:
            raise NotApplicable(why)

    def folder(self, name: str) -> Path:
        """A folder for files of this pipeline."""
        made = self.store.folder / "files" / self.name / name
        made.mkdir(parents=True, exist_ok=True)
        return made
