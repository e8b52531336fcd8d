"""The devices of ranks and what ranks are, where neither is said."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from runtime.device_choice import choose_places, default_devices
from runtime.errors import PlanMismatch
from runtime.options import EngineOptions


def test_under_torchrun_a_rank_has_the_gpu_of_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser: Any = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=torch.device("cuda:0"))]))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert default_devices(denoiser, 2) == ["cuda:0", "cuda:1"]
    with pytest.raises(PlanMismatch, match="needs 4 devices, this machine has 2"):
        default_devices(denoiser, 4)
    be_launched(monkeypatch)
    assert default_devices(denoiser, 4) == ["cuda"] * 4, "of two machines; the driver finds out which GPU that is"
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(PlanMismatch, match=r"is on cuda:0, and under torchrun .* has cuda:1"):
        default_devices(denoiser, 4)


def be_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"TORCHELASTIC_RUN_ID": "job", "RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
    for name, value in (job | {"LOCAL_RANK": "0"}).items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("devices", [["cuda", "cuda"], ["cuda:0", "cuda:0"], ["cuda:0", "cuda:1"]], ids=range(3))
def test_torchruns_ranks_are_processes_whatever_their_gpus_are_called(
    devices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    be_launched(monkeypatch)
    found = choose_places(nn.Module(), Any, devices, EngineOptions(), transport_is_given=False)  # type: ignore[arg-type]
    assert (found[0], found[1].transport) == (devices, "processes")


@pytest.mark.parametrize(
    ("devices", "overrides", "threads"),
    [
        (["cpu", "cpu"], {}, False),
        (["cuda:0", "cuda:1"], {}, False),
        (["cpu", "cuda:0"], {}, False),
        (["cuda:0", "cuda:0"], {}, True),
        (["cuda:0", "cuda:1", "cuda:1"], {}, True),
        (["cuda:0", "cuda:0"], {"transport": "processes"}, False),
        (["cuda:0", "cuda:1"], {"transport": "threads"}, True),
    ],
    ids=range(7),
)
def test_ranks_are_processes_unless_they_share_a_gpu(
    devices: list[str], overrides: dict[str, Any], threads: bool
) -> None:
    options = EngineOptions(**overrides)
    found = choose_places(nn.Module(), Any, devices, options, transport_is_given=bool(overrides))  # type: ignore[arg-type]
    assert found[1].transport == ("threads" if threads else "processes")
