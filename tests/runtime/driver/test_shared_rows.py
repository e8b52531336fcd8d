"""SharedRows: branches share a call's rows only while the denoiser keeps them apart."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from partitioner.graph.export import trace
from partitioner.models.find_spec import model_spec
from partitioner.models.spec import trace_model
from partitioner.plan.plan import Plan
from runtime import parallelize
from runtime.engine import Engine
from runtime.options import EngineOptions
from tests.support import pipelines
from tests.support.engines import contiguous, plan_of
from tests.support.small_models import small_denoiser

pytestmark = pytest.mark.slow
EMULATED = EngineOptions(transport="emulation", exact=True)


class SharedAttention:
    """Each image attends to itself and to the first of its half, as StyleAligned has it."""

    def __call__(self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: Any = None, **_: Any) -> Any:
        own = encoder_hidden_states is None
        other = hidden_states if own else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(other), attn.to_v(other)
        rows, half = len(query), len(query) // 2
        if own and rows > 2:
            first = [0] * half + [half] * half
            key, value = (torch.cat([each, each[first]], 1) for each in (key, value))
        query, key, value = (each.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for each in (query, key, value))
        found = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return attn.to_out[0](found)


def inputs(rows: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(rows)
    return {
        "sample": torch.randn(rows, 4, 16, 16, generator=generator),
        "timestep": torch.tensor(500.0),
        "encoder_hidden_states": torch.randn(rows, 7, 16, generator=generator),
        "return_dict": False,
    }


ROLES = {"sample": "latent", "timestep": "timestep", "encoder_hidden_states": "prompt"}


def halves_of(denoiser: Any, rows: int) -> Plan:
    """A plan for two branches of so many rows, of the denoiser as it is."""
    graph = trace(denoiser, inputs(rows), ROLES)
    return plan_of(graph, contiguous(graph, 1), branches=2)


def cross_frame() -> Any:
    from diffusers.pipelines.deprecated.text_to_video_synthesis.pipeline_text_to_video_zero import (
        CrossFrameAttnProcessor2_0,
    )

    return CrossFrameAttnProcessor2_0(batch_size=2)


@pytest.mark.parametrize("processor", [cross_frame, SharedAttention])
def test_processors_that_mix_rows_are_met_by_one_branch_and_a_warning(
    processor: Any, caplog: pytest.LogCaptureFixture
) -> None:
    denoiser = small_denoiser("sd15")
    plan, call = halves_of(denoiser, 2), inputs(4)
    with torch.no_grad(), Engine(denoiser, plan, EMULATED) as engine:
        wanted = torch.cat([denoiser(**{**call, **part})[0] for part in _halves(call)])
        assert torch.equal(engine(**call)[0], wanted)
        assert [report.steps for report in engine.stats.ranks] == [1, 1]
        usual = denoiser.attn_processors
        denoiser.set_attn_processor(processor())
        wanted = denoiser(**call)[0]
        with caplog.at_level(logging.WARNING, "runtime"):
            for _ in range(2):
                assert torch.equal(engine(**call)[0], wanted)
        assert [report.steps for report in engine.stats.ranks] == [3, 1]
        (warning,) = (
            record for record in caplog.records if "all rows of such calls go to one branch" in record.message
        )
        assert "attn1" in warning.message
        denoiser.set_attn_processor(usual)
        engine(**call)
        assert [report.steps for report in engine.stats.ranks] == [4, 2]


def _halves(call: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
    split = {path: call[path].chunk(2) for path in ("sample", "encoder_hidden_states")}
    return [{path: pieces[k] for path, pieces in split.items()} for k in range(2)]


@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning", "ignore:Default grid_sample:UserWarning")  # its own
def test_text_to_video_zero_is_its_pipelines_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from diffusers import TextToVideoZeroPipeline

    folder = pipelines.saved("stable_diffusion", tmp_path)

    def frames(pipe: Any) -> Any:
        generator = torch.Generator().manual_seed(0)
        return pipe("a cat", video_length=4, height=32, width=32, num_inference_steps=4, t0=1, t1=2,
                    generator=generator, output_type="latent").images  # fmt: skip

    def made() -> Any:
        parts = pipelines.load(folder).components
        pipe = TextToVideoZeroPipeline(**{k: v for k, v in parts.items() if k != "image_encoder"},
                                       requires_safety_checker=False)  # fmt: skip
        pipe.set_progress_bar_config(disable=True)
        return pipe

    wanted = frames(made())
    pipe = made()
    graph = trace_model(model_spec(str(folder), dtype="float32", height=32, width=32), rows=1)
    plan = plan_of(graph, contiguous(graph, 1), branches=2)
    with (
        caplog.at_level(logging.WARNING, "runtime"),
        parallelize(pipe, plan, transport="emulation", exact=True),
    ):
        got = frames(pipe)
    # the calls of one frame are shared, and matrix products of one row round differently than those of two
    assert torch.allclose(torch.as_tensor(got), torch.as_tensor(wanted), atol=1e-2)
    assert "all rows of such calls go to one branch" in caplog.text
