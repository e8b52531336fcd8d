"""Parts that take turns on a GPU that is not there, and pipelines that their user has offloaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from diffusers.hooks.hooks import HookRegistry
from diffusers.hooks.hooks import ModelHook as DiffusersHook
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from runtime.devices.memory import SHARED_REGION_BYTES
from runtime.errors import InputError, PlanMismatch
from runtime.offloaded_parts import check_not_offloaded, offloaded_parts
from runtime.parts import size_bytes
from runtime.pipeline import parallelize
from tests.support import pipelines
from tests.support.engines import toy, toy_plan
from tests.support.fake_cuda import FakeCuda, fake_cuda

KB = 1000
GPUS = ["cuda:0", "cuda:1"]


class Part(nn.Module):
    """Of so many bytes."""

    def __init__(self, kilobytes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(kilobytes * KB // 4))

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return given * self.weight[0]


class Autoencoder(Part):
    @apply_forward_hook
    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return latent * self.weight[0]


class Pipeline:
    """As diffusers' are, with a ControlNet in no order of offloading."""

    model_cpu_offload_seq: str | None = "text_encoder->image_encoder->transformer->vae"

    def __init__(self) -> None:
        self.components: dict[str, Any] = {
            "transformer": toy(),
            "text_encoder": Part(4),
            "vae": Autoencoder(6),
            "controlnet": Part(1),
            "scheduler": None,
            "image_encoder": None,
        }

    def where(self) -> dict[str, str]:
        parts = {name: part for name, part in self.components.items() if part is not None}
        return {name: str(next(part.parameters()).device) for name, part in parts.items()}


def needing(kilobytes: int) -> Any:
    plan = toy_plan(toy(), 2)
    components = tuple(one.model_copy(update={"memory_bytes": kilobytes * KB}) for one in plan.predicted.components)
    return plan.model_copy(update={"predicted": plan.predicted.model_copy(update={"components": components})})


@contextmanager
def offloaded(pipe: Any, monkeypatch: pytest.MonkeyPatch, kilobytes: int = 10) -> Iterator[FakeCuda]:
    plans = {"transformer": needing(2)}
    whole = kilobytes * KB + SHARED_REGION_BYTES  # with what two ranks share, as processes
    with fake_cuda(monkeypatch, size_bytes=whole) as cuda, offloaded_parts(pipe, plans, GPUS):
        yield cuda


def test_each_part_is_on_the_gpu_while_it_is_used_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipeline()
    text_encoder, vae, transformer = (pipe.components[name] for name in ("text_encoder", "vae", "transformer"))
    given = torch.full((2,), 3.0)
    with offloaded(pipe, monkeypatch) as cuda, torch.no_grad():
        assert pipe.where() == {
            "transformer": "cpu", "text_encoder": "cpu", "vae": "cpu", "controlnet": "cuda:0",
        }  # fmt: skip
        made = text_encoder(given)
        assert (str(made.device), made.tolist()) == ("cuda:0", [3.0, 3.0])
        assert (pipe.where()["text_encoder"], pipe.where()["vae"]) == ("cuda:0", "cpu")
        assert vae.decode(made).tolist() == [3.0, 3.0]
        assert (pipe.where()["text_encoder"], pipe.where()["vae"]) == ("cpu", "cuda:0")
        transformer(torch.zeros(2, 5, 8), torch.tensor(1.0), torch.zeros(2, 6))
        assert (pipe.where()["text_encoder"], pipe.where()["vae"]) == ("cpu", "cpu")
        assert cuda.used[0] <= KB + made.nbytes
        assert cuda.peak[0] <= 7 * KB + 100
        for part in (text_encoder, transformer):
            assert str(part._hf_hook.execution_device) == "cuda:0"
    assert set(pipe.where().values()) == {"cpu"}
    for part in (text_encoder, vae, transformer):
        assert not {"_hf_hook", "forward", "_old_forward"} & set(vars(part))
        assert not part._forward_pre_hooks


def test_a_part_without_room_beside_rank_0_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipeline()
    refused = pytest.raises(PlanMismatch, match=r"vae has .* GB, and beside rank 0's share cuda:0 has room for")
    with refused, offloaded(pipe, monkeypatch, kilobytes=8):
        pytest.fail("it was begun")
    assert set(pipe.where().values()) == {"cpu"}
    assert not hasattr(pipe.components["text_encoder"], "_hf_hook")


def test_what_cannot_be_offloaded_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipeline()
    plans = {"transformer": needing(2)}
    with pytest.raises(InputError, match="rank 0 is on the cpu"), offloaded_parts(pipe, plans, ["cpu", "cpu"]):
        pytest.fail("it was begun")
    pipe.model_cpu_offload_seq = None
    with pytest.raises(InputError, match="does not say which"), offloaded(pipe, monkeypatch):
        pytest.fail("it was begun")


@pytest.mark.parametrize("name", ["text_encoder", "transformer", "controlnet"])
@pytest.mark.parametrize("way", ["accelerate", "diffusers"])
def test_a_part_that_hooks_of_its_own_move_is_refused(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipeline()
    part = pipe.components[name]
    if way == "accelerate":
        hook = AlignDevicesHook("cpu")
        add_hook_to_module(part, hook)
    else:
        HookRegistry.check_if_exists_or_initialize(part).register_hook(DiffusersHook(), "group_offloading")
    refused = pytest.raises(InputError, match=f"{name} has hooks that bring it to devices")
    with refused, offloaded(pipe, monkeypatch):
        pytest.fail("it was begun")
    if way == "accelerate":
        assert part._hf_hook is hook


def test_a_pipeline_offloaded_by_its_user_is_refused_with_the_way_out(saved: Path) -> None:
    pipe = pipelines.load(saved)
    pipe.enable_model_cpu_offload(device="cpu")
    refused = pytest.raises(InputError, match="remove_all_hooks")
    with refused, parallelize(pipe, devices=2, transport="emulation"):
        pytest.fail("it was begun")
    pipe.remove_all_hooks()
    check_not_offloaded(pipe)


@pytest.mark.gpu
@pytest.mark.processes
def test_a_pipeline_whose_parts_are_offloaded_makes_the_same_picture(saved: Path) -> None:
    pipe = pipelines.load(saved)
    expected = pipelines.call(pipe)
    size = size_bytes(pipe.vae)
    with parallelize(pipe, devices=["cuda:0", "cpu"], exact=True, offload=True):
        for _ in range(2):
            assert float((pipelines.call(pipe).cpu() - expected).abs().max()) < 1e-3
            assert torch.cuda.memory_allocated(0) < 10 * size
    assert {str(part.device) for part in (pipe.vae, pipe.text_encoder, pipe.unet)} == {"cpu"}
