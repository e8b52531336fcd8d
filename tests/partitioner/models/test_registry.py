"""register_model adds an architecture by one decorated function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import diffusers
import pytest
import torch
from torch import nn

from partitioner.errors import UsageError
from partitioner.graph.nodes import Role
from partitioner.models.find_spec import model_spec
from partitioner.models.inputs import Inputs, latent, prompt, timestep
from partitioner.models.registry import ARCHITECTURES, Request, load_plugins, model_names, register_model
from partitioner.models.spec import trace_model
from tests.support.small_models import shapes


class TinyDenoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor, scale: float) -> torch.Tensor:
        return self.inside(x) * t + context.mean(1, keepdim=True) * scale


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """What a test registers is forgotten after it."""
    before = dict(ARCHITECTURES)
    yield
    load_plugins.cache_clear()
    ARCHITECTURES.clear()
    ARCHITECTURES.update(before)


def test_one_decorated_function_adds_an_architecture() -> None:
    @register_model("tiny-denoiser", build=TinyDenoiser, dtype="float32")
    def tiny(request: Request) -> Inputs:
        height, width = request.pixels((16, 16), 4)
        rows = request.rows
        return {"x": latent(rows, height, width // 2), "t": timestep(), "context": prompt(rows, 3, 8), "scale": 0.5}

    assert model_names()[-1] == "tiny-denoiser"
    spec = model_spec("tiny-denoiser")
    assert spec.roles == {"x": Role.LATENT, "t": Role.TIMESTEP, "context": Role.PROMPT}
    graph = trace_model(spec)
    assert [p.path for p in graph.parameters] == ["inside.weight", "inside.bias"]
    assert graph.class_name == "TinyDenoiser"
    assert dict(graph.literals) == {"scale": 0.5}
    with pytest.raises(UsageError, match="registered already"):
        register_model("tiny-denoiser")(lambda request: {})
    with pytest.raises(UsageError, match="registered already"):
        register_model("sdxl")(tiny)


def test_a_notebooks_cell_that_registers_a_model_may_be_run_again() -> None:
    def run_cell() -> Callable[[Request], Inputs]:
        @register_model("tiny-again", build=TinyDenoiser)
        def tiny(request: Request) -> Inputs:
            return {"t": timestep()}

        return tiny

    run_cell()
    again = run_cell()
    assert ARCHITECTURES["tiny-again"].describe is again


def test_the_guide_s_example_adds_a_diffusers_class(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[3] / "docs" / "guides" / "add-an-architecture.md").read_text(encoding="utf-8")
    (example,) = [block for block in guide.split("```python\n") if "AuraFlow" in block.split("```")[0]]
    exec(example.split("```")[0], {})
    denoiser = diffusers.AuraFlowTransformer2DModel(
        sample_size=16, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pos_embed_max_size=64,
    )  # fmt: skip
    denoiser.save_config(tmp_path)
    assert shapes(tmp_path)["hidden_states"] == (2, 4, 16, 16)
    assert trace_model(model_spec(str(tmp_path))).latent_nodes


PACKAGE = """
import torch
from partitioner.models import latent, register_model, timestep

class Shift(torch.nn.Module):
    def forward(self, x, t):
        return x + t

@register_model("packaged-shift", build=Shift, guidance_style="none", dtype="float32")
def shift(request):
    return {"x": latent(request.rows, 3, 8, 8), "t": timestep()}
"""


def install(folder: Path, package: str, source: str) -> None:
    """A package as pip leaves it: its module, its metadata, and its entry points."""
    (folder / f"{package}.py").write_text(source)
    information = folder / f"{package}-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[partition_model.models]\nshifts = {package}\n")


def test_an_installed_package_adds_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "packaged_shifts", PACKAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    load_plugins.cache_clear()
    assert "packaged-shift" in model_names()
    spec = model_spec("packaged-shift")
    assert (spec.class_name, spec.guidance_style, spec.inputs["x"].shape) == ("Shift", "none", (1, 3, 8, 8))
    assert len(trace_model(spec).latent_nodes) == 1
    with pytest.raises(UsageError, match="nearest: packaged-shift"):
        model_spec("packed-shift")


def test_a_package_that_fails_is_warned_about_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(tmp_path, "broken_shifts", "raise RuntimeError('no such weights')")
    monkeypatch.syspath_prepend(str(tmp_path))
    load_plugins.cache_clear()
    assert "flux" in model_names()
    assert "broken_shifts registers (shifts = broken_shifts" in caplog.text
    assert "RuntimeError: no such weights" in caplog.text


def test_a_guidance_style_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="'both'; expected one of batch, two-calls, embedded, none"):
        register_model("tiny-denoiser", build=TinyDenoiser, guidance_style="both")(lambda request: {})  # type: ignore[arg-type]
