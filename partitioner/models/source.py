"""find_source: a model's configuration, from this package, a local folder or the hub; weights are never read."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from partitioner.errors import UsageError, first_line
from partitioner.models.built_in import BUILT_IN, built_in
from partitioner.models.guidance_scale import scale_of_call
from partitioner.models.samplers import config_text
from profiles.json_files import JsonFileError, read_json

_WEIGHTS = [f"*.{end}" for end in ("safetensors", "bin", "pt", "pth", "ckpt", "gguf", "onnx*", "msgpack", "h5")]
_MAX_BYTES = 1_000_000
SCHEDULER_NAME = re.compile(r"(\w+_)?scheduler")  # "prior_scheduler"
DENOISER_NAMES = ("unet", "transformer")  # what most pipelines call theirs
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

Reader = Callable[[str], Path | None]  # a path inside a repository -> the local file, None where there is none


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A denoiser's class and configurations.

    Attributes:
        name: What plans call the model.
        class_name: A model class of diffusers.
        config: Configuration of the denoiser, with its class's defaults.
        pipeline: Configuration of its pipeline (model_index.json); empty where it is not known.
        vae: Configuration of the pipeline's VAE; empty where it is not known.
        revision: The commit on the hub; None for what is not from there.
        sizes: Default height, width and frames, where they are not those of its class.
        steps: Of one generation, by the pipeline's default; None where that is not known.
        guidance_scale: The pipeline's default; None where that is not known.
        part: What its pipeline calls it; None where that is not known.
        place: The folder or hub id of its pipeline; None where that is not known.
        samplers: Configurations of the pipeline's schedulers, by its names for them; empty where they are not known.
        others: The pipeline's other modules that may be called at each step.
    """

    name: str
    class_name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    pipeline: Mapping[str, Any] = field(default_factory=dict)
    vae: Mapping[str, Any] = field(default_factory=dict)
    revision: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    steps: int | None = None
    guidance_scale: float | None = None
    part: str | None = None
    place: str | None = None
    samplers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    others: tuple[ModelSource, ...] = ()

    def is_made_like(self, other: ModelSource) -> bool:
        """Whether both have one class and one configuration, and so one plan."""
        return (self.class_name, self.config) == (other.class_name, other.config)

    def scheduler(self) -> tuple[str | None, str]:
        """Class and configuration of the denoiser's scheduler in a model_index.json: ["diffusers", "DDIMScheduler"].

        Where there are several, "prior_scheduler" is that of "prior" and of "prior_prior".
        """
        names = [name for name in self.pipeline if SCHEDULER_NAME.fullmatch(name)]
        own = [name for name in names if (self.part or "").startswith(name.removesuffix("scheduler").rstrip("_"))]
        name = max(own, key=len, default="scheduler")
        entry = self.pipeline.get(name)
        if not (isinstance(entry, list | tuple) and len(entry) == 2 and entry[1]):
            return None, ""
        return str(entry[1]), config_text(self.samplers[name]) if name in self.samplers else ""


def find_source(model: str) -> ModelSource | None:
    """The source of a built-in name, a folder or a hub id; None where ``model`` is none of them.

    Raises:
        UsageError: The folder holds no configuration, this version of diffusers lacks the class, or the hub cannot be
            reached.
    """
    if model in BUILT_IN:
        known = built_in(model)
        config = _complete(known.class_name, known.config)
        return ModelSource(
            model, known.class_name, config, known.pipeline, known.vae,
            sizes=known.sizes, steps=known.steps, guidance_scale=known.guidance_scale,
        )  # fmt: skip
    folder = Path(model)
    if os.path.isdir(model):  # False also for what is no path at all
        return _from_files(folder.resolve().name, _folder_reader(folder), model)
    if _HUB_ID.fullmatch(model):
        return _from_files(model, _hub_reader(model), model)
    return None


def diffusers_class(class_name: str) -> Any:
    """A model class of diffusers.

    Raises:
        UsageError: This version of diffusers has none of that name.
    """
    import diffusers

    cls = getattr(diffusers, class_name, None)
    if not (inspect.isclass(cls) and issubclass(cls, diffusers.ModelMixin)):
        raise UsageError(f"diffusers {diffusers.__version__} has no model class {class_name}; a newer one may have it")
    return cls


def default_scale(pipeline: object) -> float | None:
    """The guidance scale that a pipeline class of diffusers has by default; None where it has none, or is not there.

    >>> default_scale("StableDiffusion3Pipeline")
    7.0
    """
    import diffusers

    try:
        return scale_of_call(getattr(diffusers, str(pipeline)).__call__)
    except Exception:  # whatever importing a pipeline raises that needs another package
        return None


def _from_files(name: str, find: Reader, model: str) -> ModelSource:
    index_file = find("model_index.json")
    if index_file is None:
        config_file = find("config.json")
        if config_file is None and find("modular_model_index.json") is not None:
            raise UsageError(
                f"{model} holds a modular pipeline, whose parts may lie anywhere: load it in Python, and give it to "
                "runtime.parallelize(pipe, devices=N), which plans it"
            )
        if config_file is None:
            raise UsageError(f"{model} holds neither a model_index.json (a pipeline) nor a config.json (a model)")
        return _from_config(name, config_file)
    index = _read(index_file)
    parts = [part for part, entry in index.items() if _may_be_stepped(entry) and find(f"{part}/config.json")]
    parts.sort(key=lambda part: part not in DENOISER_NAMES)
    if not parts:
        raise UsageError(
            f"{model} is a {index.get('_class_name', 'pipeline')} without a unet/config.json or transformer/config.json"
        )
    vae_file = find("vae/config.json") if "vae" in index else None
    vae = _read(vae_file) if vae_file else {}
    samplers = {
        name: _read(file) for name in index
        if SCHEDULER_NAME.fullmatch(name) and (file := find(f"{name}/scheduler_config.json")) is not None
    }  # fmt: skip

    scale = default_scale(index.get("_class_name"))

    def source_of(part: str) -> ModelSource:
        config_file = find(f"{part}/config.json")
        assert config_file is not None
        source = _from_config(name, config_file, index, vae)
        return replace(source, part=part, place=model, samplers=samplers, guidance_scale=scale)

    return replace(source_of(parts[0]), others=tuple(map(source_of, parts[1:])))


def _may_be_stepped(entry: Any) -> bool:
    """Whether an entry of a model_index.json, ["diffusers", "FluxTransformer2DModel"], may be called at each step."""
    import diffusers

    if not (isinstance(entry, (list, tuple)) and len(entry) == 2 and isinstance(entry[1], str)):
        return False
    cls = getattr(diffusers, entry[1], None)
    return inspect.isclass(cls) and may_be_stepped(cls)


def may_be_stepped(cls: type) -> bool:
    """Whether a pipeline may call modules of a class at each step: a model of diffusers that computes something.

    Autoencoders are called before and after the steps.
    """
    import diffusers

    computes = inspect.unwrap(getattr(cls, "forward", len))
    return (
        issubclass(cls, diffusers.ModelMixin)
        and not hasattr(cls, "decode")
        and bool(getattr(getattr(computes, "__code__", None), "co_names", ()))  # a motion adapter's calls nothing
    )


def pipeline_folder(source: ModelSource) -> Path:
    """The folder of a source's pipeline, with all of its files but the weights; one on the hub is downloaded.

    Raises:
        UsageError: The source is of no pipeline, or the hub cannot be reached.
    """
    if source.place is None:
        raise UsageError(
            f"{source.name} is a {source.class_name}, whose arguments are not known, without a pipeline that could "
            f"show them: give the folder of its pipeline, describe its call with "
            f'@register_model("{source.class_name}") from partitioner.models, or use '
            "partitioner.compile(module, example_inputs, devices=...)"
        )
    if Path(source.place).is_dir():
        return Path(source.place)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source.place, revision=source.revision, ignore_patterns=_WEIGHTS))
    except Exception as error:
        raise _unreachable(source.place, error) from error


def _from_config(
    name: str, config_file: Path, pipeline: Mapping[str, Any] | None = None, vae: Mapping[str, Any] | None = None
) -> ModelSource:
    config = _read(config_file)
    class_name = config.pop("_class_name", None)
    if not isinstance(class_name, str):
        raise UsageError(f"{config_file} names no _class_name; expected the configuration of a diffusers model")
    return ModelSource(name, class_name, _complete(class_name, config), pipeline or {}, vae or {}, _commit(config_file))


def _read(path: Path) -> dict[str, Any]:
    try:
        document = read_json(path, _MAX_BYTES)
    except JsonFileError as error:
        raise UsageError(str(error)) from error
    if not isinstance(document, dict):
        raise UsageError(f"{path} holds a {type(document).__name__}; expected an object")
    return document


def _complete(class_name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the class's defaults for what it leaves out, and nothing that the class does not take."""
    parameters = inspect.signature(diffusers_class(class_name).__init__).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    return {**defaults, **{name: value for name, value in config.items() if name in parameters}}


def _folder_reader(folder: Path) -> Reader:
    def find(path: str) -> Path | None:
        return folder / path if (folder / path).is_file() else None

    return find


def _hub_reader(hub_id: str) -> Reader:
    def find(path: str) -> Path | None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            return Path(hf_hub_download(hub_id, path))
        except LocalEntryNotFoundError as error:
            raise _unreachable(hub_id, error) from error
        except EntryNotFoundError:
            return None
        except Exception as error:
            raise _unreachable(hub_id, error) from error

    return find


def _unreachable(hub_id: str, error: Exception) -> UsageError:
    reason = first_line(error)
    return UsageError(
        f"there is no folder {hub_id}, and its configuration cannot be had from the hub: {reason} "
        "Check the id and the network, or give the folder of a downloaded pipeline"
    )


def _commit(path: Path) -> str | None:
    """The commit that a file of the hub's local cache belongs to (…/snapshots/<commit>/…)."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else None
