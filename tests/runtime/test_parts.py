"""place_parts: on GPUs that are not there, whose memory is as large as is said (tests/support/fake_cuda.py)."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import partitioner
from partitioner.plan.plan import Plan
from runtime.devices.memory import SHARED_REGION_BYTES
from runtime.engine import Engine
from runtime.live_plans import named_plans
from runtime.options import EngineOptions
from runtime.parts import place_parts, size_bytes
from runtime.pipeline import parallelize
from tests.support.engines import contiguous, equal, plan_of, toy, toy_plan
from tests.support.fake_cuda import fake_cuda
from tests.support.pipelines import call, load, saved

KB = 1000
TEN_KB = 10 * KB + SHARED_REGION_BYTES  # beside what two ranks share, as processes


class Encoder(nn.Module):
    """A part of so many bytes. Its output is a mapping whose class takes its items by name, as transformers' are."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size // 4))

    def forward(self, tokens: torch.Tensor, *, masks: list[torch.Tensor]) -> Any:
        return OrderedDict(states=tokens * self.weight[0] * masks[0], all=(tokens,))


class Autoencoder(Encoder):
    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return latent * self.weight[0]


class Pipeline:
    """As diffusers' are: on the first device of a part that is no CPU."""

    def __init__(self, **parts: Any) -> None:
        self.components = {"scheduler": None, **parts}

    @property
    def device(self) -> torch.device:
        held = [next(part.parameters()).device for part in self.components.values() if part is not None]
        return next((device for device in held if device.type != "cpu"), held[0])

    def to(self, device: str) -> None:
        for part in self.components.values():
            if part is not None:
                part.to(device)

    def where(self) -> dict[str, str]:
        parts = {name: part for name, part in self.components.items() if part is not None}
        return {name: str(next(part.parameters()).device) for name, part in parts.items()}


def made(vae: int = KB) -> Pipeline:
    return Pipeline(
        transformer=toy(), text_encoder=Encoder(2 * KB), text_encoder_2=Encoder(5 * KB), vae=Autoencoder(vae)
    )


def plan_needing(kilobytes: int) -> Plan:
    """A plan of two ranks that need so much memory each."""
    plan = toy_plan(toy(), 2)
    components = tuple(one.model_copy(update={"memory_bytes": kilobytes * KB}) for one in plan.predicted.components)
    return plan.model_copy(update={"predicted": plan.predicted.model_copy(update={"components": components})})


def test_parts_go_beside_rank_0s_share_and_the_denoiser_to_no_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = made()
    with fake_cuda(monkeypatch, size_bytes=TEN_KB) as cuda:
        place_parts(pipe, {"transformer": plan_needing(6)}, ["cuda:0", "cuda:1"])
        assert pipe.where() == {
            "transformer": "cpu", "text_encoder": "cuda:0", "text_encoder_2": "cpu", "vae": "cuda:0",
        }  # fmt: skip
        assert cuda.used[0] == 3 * KB
        assert str(pipe.device) == "cuda:0"
        tokens = torch.full((2,), 3.0).to("cuda:0")
        with torch.no_grad():
            output = pipe.components["text_encoder_2"](tokens, masks=[tokens])
        assert (str(output["states"].device), output["states"].tolist()) == ("cuda:0", [9.0, 9.0])
        assert str(output["all"][0].device) == "cuda:0"
    assert "text_encoder_2 (0.0 GB) stays on the CPU" in caplog.text


def test_the_autoencoder_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = made(vae=6 * KB)
    with fake_cuda(monkeypatch, size_bytes=TEN_KB):
        place_parts(pipe, {"transformer": plan_needing(3)}, ["cuda:0", "cuda:1"])
    assert pipe.where() == {
        "transformer": "cpu", "text_encoder": "cpu", "text_encoder_2": "cpu", "vae": "cuda:0",
    }  # fmt: skip


@pytest.mark.parametrize(("size", "parts_fit"), [(50 * KB, True), (15 * KB, False)])
def test_a_gpu_that_all_ranks_share_holds_the_denoiser_once(
    size: int, parts_fit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = made()
    assert size_bytes(pipe.components["transformer"]) < 14 * KB
    with fake_cuda(monkeypatch, size_bytes=size):
        place_parts(pipe, {"transformer": plan_needing(1)}, ["cuda:0", "cuda"])
    assert pipe.where()["transformer"] == "cuda:0"
    assert (pipe.where()["text_encoder_2"] == "cuda:0") is parts_fit


@pytest.mark.parametrize(("vae", "share"), [(KB, 10), (6 * KB, 5)])
def test_where_nothing_or_no_autoencoder_fits_beside_it_the_pipeline_stays_on_the_cpu(
    vae: int, share: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = made(vae)
    with fake_cuda(monkeypatch, size_bytes=TEN_KB):
        place_parts(pipe, {"transformer": plan_needing(share)}, ["cuda:0", "cuda:1"])
        output = pipe.components["vae"](torch.ones(2), masks=[torch.ones(2)])
    assert set(pipe.where().values()) == {"cpu"}
    assert output["states"].device.type == "cpu"


def test_without_gpus_nothing_changes() -> None:
    pipe = made()
    place_parts(pipe, {"transformer": plan_needing(1)}, ["cpu", "cpu"])
    assert set(pipe.where().values()) == {"cpu"}


@pytest.mark.usefixtures("trace_once")
def test_a_denoiser_that_no_gpu_has_room_for_runs_on_two(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    denoiser = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4))).eval()
    example = {"input": torch.ones(1, 64)}
    graph = partitioner.trace(denoiser, example, {"input": "latent"})
    plan = plan_of(graph, contiguous(graph, 2), warmup=1)
    size = size_bytes(denoiser)
    with torch.no_grad():
        expected = [denoiser(call * example["input"]) for call in range(3)]
    with fake_cuda(monkeypatch, size_bytes=int(0.6 * size)) as cuda:
        with pytest.raises(torch.OutOfMemoryError):
            nn.Sequential(*(nn.Linear(64, 64) for _ in range(4))).to("cuda:0")
        options = EngineOptions(transport="threads", cuda_graphs=False, exact=True)
        with torch.no_grad(), Engine(denoiser, plan, options, devices=["cuda:0", "cuda:1"]) as engine:
            assert all(0.5 * size <= cuda.used[index] <= 0.6 * size for index in range(2))
            outputs = [engine(input=call * example["input"])[0] for call in range(3)]
    assert equal(outputs, expected)


@pytest.mark.gpu
@pytest.mark.processes
def test_a_pipeline_on_a_gpu_whose_denoiser_stays_on_the_cpu(tmp_path: Path) -> None:
    """In a process that may have hardly more of the GPU than rank 0's share, all of it stays there."""
    pipe = load(saved("stable_diffusion", tmp_path))
    expected = call(pipe)
    devices = ["cuda:0", "cpu"]
    plans = named_plans(pipe, None, devices, {}, None)
    share = plans["unet"].predicted.components[plans["unet"].components - 1].memory_bytes
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated(0) + share) / whole, 0)
    try:
        place_parts(pipe, plans, devices)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)
    assert str(pipe.vae.device) == "cpu"
    place_parts(pipe, plans, devices)
    assert (str(pipe.vae.device), str(pipe.unet.device)) == ("cuda:0", "cpu")
    with parallelize(pipe, plans, devices=devices, exact=True):
        assert float((call(pipe) - expected).abs().max()) < 1e-3
