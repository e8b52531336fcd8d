"""A day with LoRA, processors and hooks in a real pipeline: each picture is the unmodified pipeline's, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from partitioner.models.find_spec import model_spec
from partitioner.models.spec import trace_model
from partitioner.plan.plan import Plan
from runtime import parallelize
from runtime.errors import InputError
from tests.support import pipelines
from tests.support.engines import contiguous, plan_of

pytest.importorskip("peft")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Already:UserWarning")]

Step = Callable[[Any], object]


def lora(folder: Path, into: Path, seed: int, layers: list[str]) -> Path:
    """A LoRA file with random values for such layers of the denoiser."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(seed)
    pipe = pipelines.load(folder)
    pipe.unet.add_adapter(LoraConfig(r=4, init_lora_weights=False, target_modules=layers))
    pipe.save_lora_weights(into, unet_lora_layers=get_peft_model_state_dict(pipe.unet))
    return into


class Parts:
    """A saved pipeline, a plan that cuts it in two, and two LoRA files."""

    def __init__(self, parent: Path) -> None:
        self.folder = pipelines.saved("stable_diffusion", parent)
        graph = trace_model(model_spec(str(self.folder), dtype="float32", height=32, width=32))
        self.plan: Plan = plan_of(graph, contiguous(graph, 2), warmup=2)
        self.one = lora(self.folder, parent / "one", 1, ["to_q", "to_v", "to_out.0"])
        self.other = lora(self.folder, parent / "other", 2, ["to_k"])

    def lora_day(self) -> dict[str, Step]:
        return {
            "load": lambda pipe: pipe.load_lora_weights(self.one, adapter_name="one"),
            "scale": lambda pipe: pipe.set_adapters(["one"], [0.3]),
            "load another": lambda pipe: pipe.load_lora_weights(self.other, adapter_name="other"),
            "both": lambda pipe: pipe.set_adapters(["one", "other"], [0.5, 0.7]),
            "swap": lambda pipe: pipe.set_adapters(["one"], [1.0]),
            "delete": lambda pipe: pipe.delete_adapters("other"),
            "fuse": lambda pipe: pipe.fuse_lora(lora_scale=0.8),
            "unfuse": lambda pipe: pipe.unfuse_lora(),
            "unload": lambda pipe: pipe.unload_lora_weights(),
        }

    def other_changes(self) -> dict[str, Step]:
        from diffusers.models.attention_processor import AttnProcessor

        return {
            "disable": lambda pipe: (pipe.load_lora_weights(self.one, adapter_name="one"), pipe.disable_lora()),
            "enable": lambda pipe: pipe.enable_lora(),
            "fuse and unload": lambda pipe: (pipe.fuse_lora(), pipe.unload_lora_weights()),
            "processors": lambda pipe: pipe.unet.set_attn_processor(AttnProcessor()),
            "FreeU": lambda pipe: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4),
            "no FreeU": lambda pipe: pipe.disable_freeu(),
            "projections": lambda pipe: pipe.fuse_qkv_projections(),
            "checkpointing": lambda pipe: pipe.unet.enable_gradient_checkpointing(),
            "hook": lambda pipe: pipe.unet.mid_block.register_forward_hook(lambda _m, _a, output: output * 1.1),
        }


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return Parts(tmp_path_factory.mktemp("changes"))


@pytest.mark.processes
def test_a_day_with_lora(parts: Parts) -> None:
    plain, run = pipelines.load(parts.folder), pipelines.load(parts.folder)
    with parallelize(run, parts.plan, exact=True) as engine:
        held = [len(paths) for paths in engine._first._distribution._held]
        for name, step in parts.lora_day().items():
            step(plain)
            step(run)
            assert torch.equal(pipelines.call(run, steps=2), pipelines.call(plain, steps=2)), name
        assert [len(paths) for paths in engine._first._distribution._held] == held, "what was unloaded is dropped"
        assert len(engine._ranks.workers[0]._components) == 1
    assert torch.equal(pipelines.call(run, steps=2), pipelines.call(plain, steps=2))


def test_other_changes_are_followed_too(parts: Parts) -> None:
    plain, run = pipelines.load(parts.folder), pipelines.load(parts.folder)
    with parallelize(run, parts.plan, transport="emulation", exact=True):
        for name, step in parts.other_changes().items():
            step(plain)
            step(run)
            assert torch.equal(pipelines.call(run, steps=2), pipelines.call(plain, steps=2)), name
    assert torch.equal(pipelines.call(run, steps=2), pipelines.call(plain, steps=2))


def test_a_lora_from_before_the_block_with_a_plan_of_the_plain_model(parts: Parts) -> None:
    plain, run = pipelines.load(parts.folder), pipelines.load(parts.folder)
    for pipe in (plain, run):
        pipe.load_lora_weights(parts.one, adapter_name="one")
    with parallelize(run, parts.plan, transport="emulation", exact=True):
        assert torch.equal(pipelines.call(run, steps=2), pipelines.call(plain, steps=2))
        for pipe in (plain, run):
            pipe.unload_lora_weights()
        assert torch.equal(pipelines.call(run, steps=2), pipelines.call(plain, steps=2))


def test_a_processor_that_counts_steps_is_refused_until_it_is_taken_off(parts: Parts) -> None:
    from diffusers.models.attention_processor import AttnProcessor

    class Counting(AttnProcessor):  # type: ignore[misc]
        def __init__(self) -> None:
            self.steps = 0

        def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            self.steps += 1
            made: torch.Tensor = super().__call__(*args, **kwargs) / self.steps
            return made

    plain, run = pipelines.load(parts.folder), pipelines.load(parts.folder)
    before = run.unet.attn_processors
    with parallelize(run, parts.plan, transport="emulation", exact=True):
        run.unet.set_attn_processor({name: Counting() for name in before})
        with pytest.raises(InputError, match=r"changes attribute processor\.steps of module down_blocks\.0"):
            pipelines.call(run, steps=2)
        run.unet.set_attn_processor(before)
        assert torch.equal(pipelines.call(run, steps=2), pipelines.call(plain, steps=2))
