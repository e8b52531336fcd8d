"""record_profile writes a loadable profile with the whole beside the sum, and refuses what it cannot do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from profiles.cost_profile import CostProfile
from tools.denoisers import DENOISERS, Denoiser
from tools.measure import profile as record_profile


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.register_buffer("scale", torch.ones(1))

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, extra: dict[str, torch.Tensor]) -> torch.Tensor:
        result: torch.Tensor = self.conv(sample) * self.scale + timestep + extra["text"].mean()
        return result


def tiny() -> Denoiser:
    inputs = {"sample": torch.randn(1, 4, 8, 8), "timestep": torch.tensor(1.0), "extra": {"text": torch.randn(3)}}
    return Tiny().eval(), inputs, {"sample": "latent", "timestep": "timestep", "extra": "prompt"}


@pytest.fixture(autouse=True)
def _tiny_denoiser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DENOISERS, "tiny", tiny)


def test_profile_is_written_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tiny.json"
    assert record_profile.main(["--model", "tiny", "--output", str(path)]) == 0
    profile = CostProfile.load(path)
    (check,) = profile.checks
    assert check.model == "tiny"
    assert check.module_ms is not None
    assert check.module_ms > 0
    assert check.summed_ms >= max(cost.median_ms for cost in profile.signatures.values())
    assert profile.command == f"python -m tools.measure profile --model tiny --output {path}"
    output = capsys.readouterr()
    assert output.out == record_profile.report(profile) + "\n"
    assert f"error {100 * check.error:+.1f} %" in output.out
    assert f"{len(profile.signatures)} of {len(profile.signatures)} signatures" in output.err


def test_existing_file_needs_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tiny.json"
    path.write_text("precious")
    assert record_profile.main(["--model", "tiny", "--output", str(path)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert path.read_text() == "precious"
    assert record_profile.main(["--model", "tiny", "--output", str(path), "--force"]) == 0
    assert CostProfile.load(path).checks


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--model", "nonsense"], "nonsense"),
        (["--model", "tiny", "--device", "cuda:99"], "torch sees"),
        (["--model", "tiny", "--device", "abacus"], "cannot measure on 'abacus'"),
        (["--model", "tiny", "--mode", "cuda_graph"], "needs a GPU"),
    ],
)
def test_impossible_requests_end_with_2_and_a_sentence(
    options: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert record_profile.main([*options, "--output", str(tmp_path / "x.json")]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.startswith("tools.measure.profile: error: ")
    assert not (tmp_path / "x.json").exists()
