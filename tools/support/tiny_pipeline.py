"""TinyPipeline: a pipeline class of diffusers, its parts made small, and the arguments of one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tools.denoisers import seeded


@dataclass(frozen=True)
class TinyPipeline:
    """A pipeline class, made small.

    Attributes:
        class_name: Of diffusers.
        parts: Makes the arguments of its constructor.
        call: The arguments of a call, but for the number of steps, the generator and the kind of output; functions
            among them make theirs.
        output: The kind of output; None where the pipeline has but one.
        left_out: Parts that the pipeline runs without, given the call's arguments (encoders of what is given encoded).
        unsaved: Makes parts that cannot be saved, and are given to the loaded pipeline.
        steps: The name of the number of steps; empty where a call has none.
        takes_generator: Whether a call takes a generator.
    """

    class_name: str
    parts: Callable[[], Mapping[str, Any]]
    call: Mapping[str, Any]
    output: str | None = "latent"
    left_out: tuple[str, ...] = ()
    unsaved: Callable[[], Mapping[str, Any]] = dict
    steps: str = "num_inference_steps"
    takes_generator: bool = True

    def sizes(self) -> dict[str, Any]:
        """What a plan is made for, as ``parallelize`` takes it: the sizes that a call names."""
        names = {"height": "height", "width": "width", "num_frames": "frames"}
        return {name: self.call[argument] for argument, name in names.items() if argument in self.call}

    def save(self, folder: Path) -> Path:
        """Make the pipeline from seed 0 and save it; the folder it is in."""
        import diffusers

        others = self._others()
        with seeded(0):
            pipe = getattr(diffusers, self.class_name)(**others, **self.parts())
        pipe.register_to_config(**dict.fromkeys(others, (None, None)))
        target = folder / self.class_name
        pipe.save_pretrained(target)
        return target

    def load(self, folder: Path) -> Any:
        """The pipeline that was saved, without its progress bar."""
        import diffusers

        pipe = getattr(diffusers, self.class_name).from_pretrained(folder, **self._others())
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _others(self) -> dict[str, Any]:
        """The parts that are not saved."""
        with seeded(0):
            return {**dict.fromkeys(self.left_out), **self.unsaved()}

    def arguments(self) -> dict[str, Any]:
        """The arguments of a call, but for the number of steps, the generator and the kind of output."""
        return {name: value() if callable(value) else value for name, value in self.call.items()}

    def run(self, pipe: Any, steps: int = 6) -> Any:
        """A call, always the same; what it makes."""
        arguments = self.arguments()
        if self.steps:
            arguments.setdefault(self.steps, steps)
        if self.output is not None:
            arguments["output_type"] = self.output
        if self.takes_generator:
            arguments["generator"] = torch.Generator("cpu").manual_seed(0)
        with seeded(1):
            return pipe(**arguments, return_dict=False)


def tiny_pipeline(
    class_name: str, parts: Callable[[], Mapping[str, Any]], output: str | None = "latent", **call: Any
) -> TinyPipeline:
    """A TinyPipeline, with the arguments of its call as keywords."""
    return TinyPipeline(class_name, parts, call, output)
