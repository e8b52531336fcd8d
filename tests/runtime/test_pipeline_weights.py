"""Who reads or saves a pipeline's denoiser while ranks hold its parameters sees what is there without an engine."""

from __future__ import annotations

import copy
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from partitioner.models.spec import model_spec, trace_model
from partitioner.plan.plan import Plan
from runtime import parallelize
from runtime.engine import Engine
from runtime.errors import EngineError
from tests.support import pipelines
from tests.support.engines import contiguous, plan_of

pytestmark = [pytest.mark.usefixtures("trace_once"), pytest.mark.processes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipelines.saved("stable_diffusion", tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def plan(folder: Path) -> Plan:
    graph = trace_model(model_spec(str(folder), dtype="float32", height=32, width=32))
    return plan_of(graph, contiguous(graph, 2), warmup=2)


@pytest.fixture
def pipe(folder: Path, tmp_path: Path) -> Any:
    """A pipeline whose folder belongs to the test."""
    return pipelines.load(Path(shutil.copytree(folder, tmp_path / "pipeline")))


def values(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_saving_and_copying_in_the_block_is_as_without_an_engine(pipe: Any, plan: Plan, tmp_path: Path) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline, UNet2DConditionModel

    source, before = Path(pipe.unet.config._name_or_path), values(pipe.unet)
    sums = [parameter.sum().item() for parameter in pipe.unet.parameters()]
    expected = pipelines.call(pipe, steps=2)
    with parallelize(pipe, plan, exact=True) as engine:
        assert len(engine._first._weights.released) > 20
        assert torch.equal(pipelines.call(pipe, steps=2), expected)
        assert same(values(pipe.unet), before)
        assert [parameter.sum().item() for parameter in pipe.unet.parameters()] == sums
        assert same(values(copy.deepcopy(pipe.unet)), before)
        assert same(values(pickle.loads(pickle.dumps(pipe.unet))), before)
        for target in (tmp_path / "elsewhere", source):
            pipe.unet.save_pretrained(target)
            assert same(values(UNet2DConditionModel.from_pretrained(target)), before)
        pipe.save_pretrained(tmp_path / "whole")
        assert same(values(pipelines.load(tmp_path / "whole").unet), before)
        assert torch.equal(pipelines.call(pipe, steps=2), expected)
        assert torch.equal(pipelines.call(pipelines.load(tmp_path / "whole"), steps=2), expected)

        steps = engine.stats.steps
        second = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
        second.set_progress_bar_config(disable=True)
        pipelines.call(second, image=torch.zeros(1, 3, 32, 32), steps=2, strength=1.0)
        assert engine.stats.steps == steps + 2, "another pipeline of the same parts runs the engine, too"
        assert pipe.to("cpu").unet.device == torch.device("cpu")
        assert same(values(pipe.unet), before)
    assert same(values(pipe.unet), before)
    assert torch.equal(pipelines.call(pipe, steps=2), expected)


def test_parameters_come_back_after_lora_has_renamed_them(pipe: Any, plan: Plan) -> None:
    from peft import LoraConfig

    before = values(pipe.unet)
    parameters = dict(pipe.unet.named_parameters())
    expected = pipelines.call(pipe, steps=2)
    with parallelize(pipe, plan, exact=True):
        pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=True))
        assert "to_q.base_layer.weight" in " ".join(pipe.unet.state_dict())
    for path, parameter in parameters.items():
        assert torch.equal(parameter, before[path])
    assert torch.equal(pipelines.call(pipe, steps=2), expected)


@pytest.mark.parametrize("renamed", [False, True])
def test_a_file_that_is_written_to_in_place_changes_nothing(pipe: Any, plan: Plan, renamed: bool) -> None:
    from peft import LoraConfig

    before, expected = values(pipe.unet), pipelines.call(pipe, steps=2)
    (file,) = Path(pipe.unet.config._name_or_path).glob("*.safetensors")
    with parallelize(pipe, plan, exact=True) as engine:
        if renamed:  # the ranks then know them by other paths than those under which they were let go of
            pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"]))  # which adds nothing yet
            pipelines.call(pipe, steps=1)
            before = values(pipe.unet)
        file.write_bytes(b"")
        assert torch.equal(pipelines.call(pipe, steps=2), expected)
        assert not engine._first._weights.released
        assert same(values(pipe.unet), before)
    assert same(values(pipe.unet), before)
    assert torch.equal(pipelines.call(pipe, steps=2), expected)


def test_they_come_back_from_their_ranks_at_the_blocks_end(pipe: Any, plan: Plan) -> None:
    before = values(pipe.unet)
    (file,) = Path(pipe.unet.config._name_or_path).glob("*.safetensors")
    with parallelize(pipe, plan, exact=True):
        file.write_bytes(b"")
    assert same(values(pipe.unet), before)


@pytest.mark.slow
def test_a_block_that_is_never_left_ends_with_the_program(folder: Path, plan: Plan, tmp_path: Path) -> None:
    plan.save(tmp_path / "a.plan.json")
    code = (
        "from runtime import parallelize\n"
        "from tests.support import pipelines\n"
        "from tests.support.traces import rank_processes\n"
        f"pipe = pipelines.load({str(folder)!r})\n"
        f"block = parallelize(pipe, {str(tmp_path / 'a.plan.json')!r})\n"
        "block.__enter__()\n"
        "print('ranks', *rank_processes())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0
    assert "Exception ignored" not in done.stderr
    assert "Traceback" not in done.stderr
    (pid,) = next(line for line in done.stdout.splitlines() if line.startswith("ranks")).split()[1:]
    assert not Path("/proc", pid).exists()


def test_where_the_ranks_have_ended_the_error_names_the_file(pipe: Any, plan: Plan) -> None:
    before = values(pipe.unet)
    (file,) = Path(pipe.unet.config._name_or_path).glob("*.safetensors")
    engine = Engine(pipe.unet, plan)
    released = engine._first._weights.released
    engine._end()
    file.write_bytes(b"")
    with pytest.raises(EngineError, match=r"\.safetensors was written to .* parameters are NaN now; load the pipeline"):
        engine.close()
    after = values(pipe.unet)
    assert {name for name in before if not torch.equal(after[name], before[name])} == released
    assert all(after[name].isnan().all() for name in released)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_and_variants_are_let_go_of(folder: Path, plan: Plan, tmp_path: Path, variant: str | None) -> None:
    pipe = pipelines.load(folder)
    if variant:
        pipe.unet.half()
    pipe.unet.save_pretrained(tmp_path, variant=variant, max_shard_size="300KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    pipe.unet = type(pipe.unet).from_pretrained(tmp_path, variant=variant, torch_dtype=pipe.unet.dtype)
    with parallelize(pipe, plan) as engine:
        own, others = (held.keys() for held in engine._first._distribution._held)
        assert engine._first._weights.released == others - own
