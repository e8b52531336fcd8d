"""A pipeline that was moved to a GPU: which memory its ranks take there, and that it is whole there afterwards."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

import partitioner
from partitioner.plan.plan import Plan
from runtime.moved_denoisers import on_cpu_meanwhile
from runtime.parts import size_bytes
from runtime.pipeline import parallelize
from tests.support.engines import contiguous, equal, plan_of
from tests.support.fake_cuda import fake_cuda

WIDTH = 64


class Pipeline:
    """As diffusers' are: on the first device of a part that is no CPU."""

    scheduler = None

    def __init__(self, transformer: nn.Module, vae: nn.Module | None) -> None:
        self.transformer = transformer
        self.vae = vae

    @property
    def components(self) -> dict[str, Any]:
        return {"transformer": self.transformer, "vae": self.vae, "scheduler": None}

    @property
    def device(self) -> torch.device:
        held = [next(part.parameters()).device for part in (self.transformer, self.vae) if part is not None]
        return next((device for device in held if device.type != "cpu"), held[0])

    def to(self, device: str) -> None:
        for part in (self.transformer, self.vae):
            if part is not None:
                part.to(device)


@pytest.fixture
def chain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(4))).eval()


def planned(chain: nn.Module) -> Plan:
    graph = partitioner.trace(chain, {"input": torch.ones(1, WIDTH)}, {"input": "latent"})
    return plan_of(graph, contiguous(graph, 2), warmup=1)


@pytest.mark.usefixtures("trace_once")
def test_no_gpu_holds_more_of_the_denoiser_than_its_share(chain: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, size = planned(chain), size_bytes(chain)
    given = torch.ones(1, WIDTH)
    with torch.no_grad():
        expected = [chain(call * given) for call in range(3)]
    before = {name: tensor.detach().clone() for name, tensor in chain.named_parameters()}
    pipe = Pipeline(chain, nn.Linear(WIDTH, WIDTH))
    part = size_bytes(pipe.vae)
    with fake_cuda(monkeypatch) as cuda:
        pipe.to("cuda:0")
        assert cuda.used[0] == size + part
        options: dict[str, Any] = {"transport": "threads", "cuda_graphs": False, "exact": True}
        with torch.no_grad(), parallelize(pipe, plan, devices=["cuda:0", "cuda:1"], **options):
            assert part + 0.5 * size <= cuda.used[0] <= part + 0.6 * size
            assert 0.5 * size <= cuda.used[1] <= 0.6 * size
            assert str(pipe.device) == "cuda:0"
            got = [chain((call * given).to("cuda:0"))[0] for call in range(3)]
            assert {str(output.device) for output in got} == {"cuda:0"}
            got = [output.cpu() for output in got]
        assert {str(tensor.device) for tensor in chain.parameters()} == {"cuda:0"}
        assert cuda.used[0] == size + part
        chain.cpu()
    assert equal(got, expected)
    assert equal(list(dict(chain.named_parameters()).values()), list(before.values()))


@pytest.mark.parametrize(
    ("devices", "free", "vae", "warning"),
    [
        (["cuda:0", "cuda"], None, True, None),
        (["cuda:0", "cuda:1"], 10, True, "the CPU has 0.0 GB free"),
        (["cuda:0", "cuda:1"], None, False, "nothing of the pipeline would be there"),
    ],
    ids=["all ranks are there", "no memory", "it is all there is"],
)
def test_it_stays_where(
    devices: list[str],
    free: int | None,
    vae: bool,
    warning: str | None,
    chain: nn.Module,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pipe = Pipeline(chain, nn.Linear(2, 2) if vae else None)
    monkeypatch.setattr("runtime.moved_denoisers.free_bytes", lambda device: free)
    with fake_cuda(monkeypatch), caplog.at_level(logging.WARNING):
        pipe.to("cuda:0")
        with on_cpu_meanwhile(pipe, [chain], devices):
            assert {str(tensor.device) for tensor in chain.parameters()} == {"cuda:0"}
    assert (warning in caplog.text) if warning else not caplog.records


def test_it_stays_where_something_else_has_a_part_of_its_memory(
    chain: nn.Module, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = Pipeline(chain, nn.Linear(2, 2))
    with fake_cuda(monkeypatch), caplog.at_level(logging.WARNING):
        pipe.to("cuda:0")
        given = chain.state_dict()
        with on_cpu_meanwhile(pipe, [chain], ["cuda:0", "cuda:1"]):
            assert {str(tensor.device) for tensor in chain.parameters()} == {"cuda:0"}
        assert given["3.bias"].data_ptr() == chain.get_parameter("3.bias").data_ptr()
        assert "something else has a part" in caplog.text
        del given
        with on_cpu_meanwhile(pipe, [chain], ["cuda:0", "cuda:1"]):
            assert {str(tensor.device) for tensor in chain.parameters()} == {"cpu"}
        chain.cpu()


def test_it_is_back_after_an_error(chain: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipeline(chain, nn.Linear(2, 2))
    with fake_cuda(monkeypatch):
        pipe.to("cuda:1")
        with on_cpu_meanwhile(pipe, [chain], ["cuda:0", "cuda:1"]):
            assert {str(tensor.device) for tensor in chain.parameters()} == {"cpu"}
        with pytest.raises(KeyError), on_cpu_meanwhile(pipe, [chain], ["cuda:0", "cuda:1"]):
            raise KeyError
        assert {str(tensor.device) for tensor in chain.parameters()} == {"cuda:1"}
