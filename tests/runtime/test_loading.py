"""load_pipeline: a folder, with what its index says is missing left out; a variant of its weights; a single file.

What cannot be loaded is one sentence, which names the file at fault where one cannot be read.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save

from partitioner.errors import UsageError
from runtime.loading import load_pipeline
from tests.support.single_file import same_state, save_single_file


def test_an_index_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("[]")
    with pytest.raises(UsageError, match="holds no JSON object"):
        load_pipeline(tmp_path, torch.float32)


def test_parts_that_are_missing_are_passed_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed: dict[str, Any] = {}
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", lambda _folder, **given: passed.update(given))
    index = {"_class_name": "Pipeline", "unet": ["diffusers", "UNet2DConditionModel"], "text_encoder_3": [None, None]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    load_pipeline(tmp_path, torch.float16)
    assert passed == {"torch_dtype": torch.float16, "variant": None, "text_encoder_3": None}


def test_a_single_file_gives_the_same_weights(saved: Path, tmp_path: Path) -> None:
    folder = load_pipeline(saved, torch.float32)
    save_single_file(folder, tmp_path / "one.safetensors")
    loaded = load_pipeline(tmp_path / "one.safetensors", torch.float32, config=str(saved))
    assert type(loaded) is type(folder)
    for part in ("unet", "vae", "text_encoder"):
        assert same_state(getattr(loaded, part), getattr(folder, part)), part


def test_a_variant_is_the_weights_of_that_name(saved: Path, tmp_path: Path) -> None:
    plain = load_pipeline(saved, torch.float32)
    plain.save_pretrained(tmp_path, variant="fp16", max_shard_size="50KB")
    assert list(tmp_path.glob("unet/diffusion_pytorch_model.fp16-*.safetensors"))
    assert same_state(load_pipeline(tmp_path, torch.float32, variant="fp16").unet, plain.unet)


def test_what_contradicts_itself_is_refused(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "one.safetensors").touch()
    with pytest.raises(UsageError, match=r"one.safetensors is a single file, which has no variant fp16"):
        load_pipeline(tmp_path / "one.safetensors", torch.float32, variant="fp16")
    with pytest.raises(UsageError, match="is not a single file, and has its own configuration instead of sd15"):
        load_pipeline(saved, torch.float32, config="sd15")


def change(file: str, **values: Any) -> Callable[[Path], None]:
    """Puts values into a configuration."""

    def mutate(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return mutate


def replace(file: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: bytes_into(folder / file, data)


def bytes_into(file: Path, data: bytes) -> None:
    file.unlink(missing_ok=True)
    file.write_bytes(data)


def instead(file: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def mutate(folder: Path) -> None:
        (folder / file).unlink()
        make(folder / file)

    return mutate


def index(weights: str, document: Any) -> Callable[[Path], None]:
    return lambda folder: bytes_into(folder / f"{weights}.safetensors.index.json", json.dumps(document).encode())


NO_INDEX = "{folder}/unet/diffusion_pytorch_model.safetensors.index.json is no index of weights: expected "
DEEP = b'{"a":' * 5000 + b"1" + b"}" * 5000
# what is done to a folder, and what the sentence says
BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "deep index": (replace("model_index.json", DEEP), "model_index.json is nested deeper than 32 levels"),
    "deep configuration": (replace("vae/config.json", DEEP), "vae/config.json is nested deeper than 32 levels"),
    "deep scheduler": (
        replace("scheduler/scheduler_config.json", DEEP), "scheduler_config.json is nested deeper than 32 levels"
    ),
    "library": (change("model_index.json", scheduler=[0, "DDIMScheduler"]), "TypeError: attribute name must be string"),
    "entry": (change("model_index.json", unet=[1]), "not enough values to unpack"),
    "value of a kind": (change("vae/config.json", norm_num_groups=""), "TypeError: unsupported operand"),
    "text encoder": (change("text_encoder/config.json", num_attention_heads=[1]), "Validation error for field"),
    "absurd layers": (change("text_encoder/config.json", num_hidden_layers=10**6), "more than"),
    "absurd width": (change("text_encoder/config.json", vocab_size=10**9), "GB of parameters, and its files of"),
    "absurd table": (
        change("scheduler/scheduler_config.json", num_train_timesteps=10**9),
        "has a num_train_timesteps of 1000000000; expected at most 100000",
    ),
    "absurd prompt": (
        change("tokenizer/tokenizer_config.json", model_max_length=10**12),
        "has a model_max_length of 1000000000000; expected at most 2000000",
    ),
    "tokenizer": (replace("tokenizer/tokenizer.json", b'{"model": []}'), "cannot be loaded: "),
    "weights": (
        replace("unet/diffusion_pytorch_model.safetensors", b"\xff" * 99),
        "diffusion_pytorch_model.safetensors is no safetensors file: SafetensorError: ",
    ),
    "index without a map": (index("unet/diffusion_pytorch_model", {}), f"KeyError: 'weight_map' ({NO_INDEX}"),
    "index with a list": (
        index("unet/diffusion_pytorch_model", {"weight_map": [], "metadata": {}}),
        f"AttributeError: 'list' object has no attribute 'values' ({NO_INDEX}",
    ),
    "index to a number": (
        index("unet/diffusion_pytorch_model", {"weight_map": {"conv_in.weight": 3}, "metadata": {}}),
        f" ({NO_INDEX}",
    ),
    "shard that is missing": (
        index("unet/diffusion_pytorch_model", {"weight_map": {"conv_in.weight": "gone.safetensors"}, "metadata": {}}),
        "does not appear to have a file named",
    ),
    "shard elsewhere": (
        index("unet/diffusion_pytorch_model", {"weight_map": {"conv_in.weight": "../a.safetensors"}, "metadata": {}}),
        "unet/diffusion_pytorch_model.safetensors.index.json has weights in '../a.safetensors'; expected the name of",
    ),
    "weights of another shape": (
        replace("unet/diffusion_pytorch_model.safetensors", save({"conv_in.weight": torch.ones(3, 3)})),
        "expected shape torch.Size([32, 4, 3, 3]), but got torch.Size([3, 3])",
    ),
    "weights of another name": (
        instead("unet/diffusion_pytorch_model.safetensors", lambda file: file.with_stem("Diffusion").touch()),
        "Error no file named diffusion_pytorch_model.bin found in directory",
    ),
    "pipe": (instead("unet/config.json", os.mkfifo), "unet/config.json is no file but a device, a pipe or a socket"),
    "device": (
        instead("unet/config.json", lambda file: file.symlink_to("/dev/zero")), "is no file but a device, a pipe or"
    ),
    "huge": (
        instead("vae/config.json", lambda file: (file.touch(), os.truncate(file, 1 << 40))), "has 1099511627776 bytes"
    ),
    "link to itself": (instead("vae/config.json", lambda file: file.symlink_to(file)), "no file named config.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_refused_in_one_sentence(name: str, saved: Path, tmp_path: Path) -> None:
    mutate, expected = BROKEN[name]
    folder = tmp_path / "sd"
    shutil.copytree(saved, folder)
    mutate(folder)
    with pytest.raises(UsageError) as caught:
        load_pipeline(folder, torch.float32)
    message = str(caught.value)
    assert message.startswith(str(folder))
    assert expected.replace("{folder}", str(folder)) in message
    assert "\n" not in message
    assert len(message) < 900


class MakesFolder:
    """What runs code where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize(
    "file", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"], ids=["unet", "text encoder"]
)
def test_no_code_in_pickled_weights_is_run(file: str, saved: Path, tmp_path: Path) -> None:
    safe = Path(shutil.copytree(saved, tmp_path / "sd")) / file
    safe.unlink()
    pickled = safe.with_name("pytorch_model.bin" if safe.stem == "model" else f"{safe.stem}.bin")
    torch.save({"w": MakesFolder(tmp_path / "made")}, pickled)
    with pytest.raises(UsageError, match="cannot be loaded: "):
        load_pipeline(tmp_path / "sd", torch.float32)
    assert not (tmp_path / "made").exists()
    torch.load(pickled, weights_only=False)
    assert (tmp_path / "made").exists()  # it would have been


def test_a_table_of_absurd_size_is_refused_before_it_is_made(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", lambda *_, **__: torch.zeros(10**10))
    with pytest.raises(UsageError, match=r"asks for more than \d\.\d GB of memory, and its files have far less"):
        load_pipeline(saved, torch.float32)
    assert resource.getrlimit(resource.RLIMIT_DATA) == limits


def test_defects_of_the_loader_itself_are_not_blamed_on_the_folder(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.loading.read_json", lambda *_: [].no_such_thing)  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="no_such_thing"):
        load_pipeline(saved, torch.float32)
