"""Who reads or saves a pipeline's denoiser while ranks hold its parameters sees what is there without an engine."""

from __future__ import annotations

import copy
import mmap
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from partitioner.models.find_spec import model_spec
from partitioner.models.spec import trace_model
from partitioner.plan.plan import Plan
from runtime import parallelize
from runtime.engine import Engine
from runtime.errors import InputError, WeightsChanged
from runtime.ranks.processes import ProcessRanks
from tests.support import pipelines, warm
from tests.support.engines import contiguous, plan_of

pytestmark = [pytest.mark.usefixtures("trace_once"), pytest.mark.processes]


@pytest.fixture(scope="module")
def plan(saved: Path) -> Plan:
    graph = trace_model(model_spec(str(saved), dtype="float32", height=32, width=32))
    return plan_of(graph, contiguous(graph, 2), warmup=2)


@pytest.fixture
def pipe(saved: Path, tmp_path: Path) -> Any:
    """A pipeline whose folder belongs to the test."""
    return pipelines.load(Path(shutil.copytree(saved, tmp_path / "pipeline")))


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


def other_bytes(file: Path) -> bytes:
    """A file of the same tensors with other values, of the same size."""
    holder = file.with_name("other.tmp")
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, holder, {"format": "pt"})
    content = holder.read_bytes()
    holder.unlink()
    assert len(content) == file.stat().st_size
    return content


def save_over(file: Path) -> None:
    file.with_name("new.tmp").write_bytes(other_bytes(file))
    os.replace(file.with_name("new.tmp"), file)


def write_with_its_times(file: Path) -> None:
    """As a copy that keeps times does: nothing but the values tells that it is another."""
    content, times = other_bytes(file), file.stat()
    with open(file, "r+b") as written:
        written.write(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def write_through_memory(file: Path) -> None:
    content = other_bytes(file)
    with open(file, "r+b") as written, mmap.mmap(written.fileno(), 0) as mapped:
        mapped[:] = content


def move_folder(file: Path) -> None:
    file.parent.rename(file.parent.with_name("moved"))


# what is done to a file of the denoiser's weights
DONE: dict[str, Callable[[Path], object]] = {
    "replaced": save_over,
    "written to": lambda file: file.write_bytes(other_bytes(file)),
    "written to, with its times": write_with_its_times,
    "written to through memory": write_through_memory,
    "cut": lambda file: os.truncate(file, file.stat().st_size // 2),
    "emptied": lambda file: file.write_bytes(b""),
    "deleted": lambda file: file.unlink(),
    "moved": move_folder,
    "touched": os.utime,
}


@pytest.mark.parametrize("what", DONE)
def test_whatever_is_done_to_a_file_changes_nothing(pipe: Any, plan: Plan, what: str) -> None:
    before, expected = values(pipe.unet), pipelines.call(pipe, steps=2)
    (file,) = Path(pipe.unet.config._name_or_path).glob("*.safetensors")
    is_still_there = what in ("replaced", "deleted", "moved", "touched")
    with parallelize(pipe, plan, exact=True) as engine:
        released = engine._first._weights.released
        DONE[what](file)
        assert torch.equal(pipelines.call(pipe, steps=2), expected)
        assert engine._first._weights.released == (released if is_still_there else set())
        assert same(values(pipe.unet), before)
    assert same(values(pipe.unet), before)
    assert torch.equal(pipelines.call(pipe, steps=2), expected)


@pytest.mark.parametrize("what", ["written to, with its times", "emptied"])
def test_they_come_back_from_their_ranks_at_the_blocks_end(pipe: Any, plan: Plan, what: str) -> None:
    before = values(pipe.unet)
    (file,) = Path(pipe.unet.config._name_or_path).glob("*.safetensors")
    with parallelize(pipe, plan, exact=True):
        DONE[what](file)
    assert same(values(pipe.unet), before)


def test_ranks_know_them_by_the_paths_that_lora_has_given_them(pipe: Any, plan: Plan) -> None:
    from peft import LoraConfig

    expected = pipelines.call(pipe, steps=2)
    (file,) = Path(pipe.unet.config._name_or_path).glob("*.safetensors")
    with parallelize(pipe, plan, exact=True):
        pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"]))  # which adds nothing yet
        pipelines.call(pipe, steps=1)
        before = values(pipe.unet)
        file.write_bytes(b"")
        assert torch.equal(pipelines.call(pipe, steps=2), expected)
        assert same(values(pipe.unet), before)
    assert same(values(pipe.unet), before)


def test_one_shard_of_several_behind_links_is_written_to(saved: Path, plan: Plan, tmp_path: Path) -> None:
    """As hubs keep files: links in the folder, to files in a cache."""
    pipe = pipelines.load(saved)
    pipe.unet.save_pretrained(tmp_path / "folder", max_shard_size="300KB")
    (tmp_path / "cache").mkdir()
    for number, shard in enumerate(sorted((tmp_path / "folder").glob("*.safetensors"))):
        os.replace(shard, tmp_path / "cache" / str(number))
        shard.symlink_to(tmp_path / "cache" / str(number))
    pipe.unet = type(pipe.unet).from_pretrained(tmp_path / "folder")
    before, expected = values(pipe.unet), pipelines.call(pipe, steps=2)
    with parallelize(pipe, plan, exact=True) as engine:
        released = engine._first._weights.released
        file = next(each.mapped.opened.file for each in engine._first._weights._released.values())
        write_with_its_times(file.resolve())
        assert torch.equal(pipelines.call(pipe, steps=2), expected)
        assert set() < engine._first._weights.released < released, "those of other shards stay where they are"
        assert same(values(pipe.unet), before)
    assert same(values(pipe.unet), before)


@pytest.mark.parametrize("options", [{"keep_weights": True}, {"transport": "emulation"}])
@pytest.mark.parametrize("what", ["written to, with its times", "emptied"])
def test_nothing_that_an_engine_computes_with_lies_in_a_file(
    pipe: Any, plan: Plan, options: dict[str, Any], what: str
) -> None:
    """The parameters of a pipeline that was just loaded are views of its files."""
    before, expected = values(pipe.unet), pipelines.call(pipe, steps=2)
    (file,) = Path(pipe.unet.config._name_or_path).glob("*.safetensors")
    with parallelize(pipe, plan, exact=True, **options):
        DONE[what](file)
        assert torch.equal(pipelines.call(pipe, steps=2), expected)
    assert same(values(pipe.unet), before)
    assert torch.equal(pipelines.call(pipe, steps=2), expected)


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_neither_does_what_has_other_names_in_a_file(pipe: Any, plan: Plan, tmp_path: Path, suffix: str) -> None:
    """A file that torch.save has made is mapped as well, and a single file's tensors have its own names."""
    state = {f"model.{name}": tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    file = tmp_path / f"own.{suffix}"
    if suffix == "bin":
        torch.save(state, file)
        loaded = torch.load(file, mmap=True)
    else:
        save_file(state, file)
        loaded = load_file(file)
    pipe.unet.load_state_dict({name.removeprefix("model."): each for name, each in loaded.items()}, assign=True)
    del loaded
    before, expected = values(pipe.unet), pipelines.call(pipe, steps=2)
    with parallelize(pipe, plan, exact=True):
        file.write_bytes(bytes(file.stat().st_size))
        assert torch.equal(pipelines.call(pipe, steps=2), expected)
    assert same(values(pipe.unet), before)


@pytest.mark.parametrize("what", ["replaced", "deleted", "written to", "written to, with its times"])
def test_a_file_that_changes_while_ranks_start_gives_the_same_or_an_error(
    pipe: Any, plan: Plan, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the driver's look at it and a rank's."""
    expected = pipelines.call(pipe, steps=2)
    (file,) = Path(pipe.unet.config._name_or_path).glob("*.safetensors")
    readable, left = ProcessRanks.readable, [DONE[what]]

    def change_first(*args: Any) -> dict[str, Path]:
        found = readable(*args)
        if left:
            left.pop()(file)
        return found

    monkeypatch.setattr(ProcessRanks, "readable", change_first)
    if what in ("replaced", "deleted"):
        with parallelize(pipe, plan, exact=True):
            assert torch.equal(pipelines.call(pipe, steps=2), expected)
    else:
        with (
            pytest.raises(WeightsChanged, match=r"\.safetensors was written to before a rank could read .*: load the"),
            parallelize(pipe, plan, exact=True),
        ):
            pass


def test_a_change_that_a_file_takes_with_it_is_refused_once(pipe: Any, plan: Plan) -> None:
    before, expected = values(pipe.unet), pipelines.call(pipe, steps=2)
    (file,) = Path(pipe.unet.config._name_or_path).glob("*.safetensors")

    def change(path: str) -> None:
        with torch.no_grad():
            pipe.unet.get_parameter(path).add_(1)

    with parallelize(pipe, plan, exact=True) as engine:
        first, second, third = sorted(engine._first._weights.released)[:3]
        change(first)
        changed = pipelines.call(pipe, steps=2)  # the ranks have it
        file.unlink()
        change(second)
        pipelines.call(pipe, steps=2)  # a file that is gone takes nothing with it
        change(third)
        with open(f"/proc/self/fd/{next(iter(engine._first._weights._mapped)).opened.descriptor}", "r+b") as again:
            again.write(bytes(4))
        with pytest.raises(
            InputError, match=f"{third} was changed, and before the next call the file .* make it again"
        ):
            pipelines.call(pipe, steps=2)
        assert torch.equal(pipe.unet.get_parameter(third), before[third])
        change(third)
        pipelines.call(pipe, steps=2)
    assert not torch.equal(changed, expected)
    after = values(pipe.unet)
    assert {name for name in before if not torch.equal(after[name], before[name])} == {first, second, third}
    assert all(torch.equal(after[name], before[name] + 1) for name in (first, second, third))


@pytest.mark.slow
def test_a_block_that_is_never_left_ends_with_the_program(saved: Path, plan: Plan, tmp_path: Path) -> None:
    plan.save(tmp_path / "a.plan.json")
    code = (
        "from runtime import parallelize\n"
        "from tests.support import pipelines\n"
        "from tests.support.traces import rank_processes\n"
        f"pipe = pipelines.load({str(saved)!r})\n"
        f"block = parallelize(pipe, {str(tmp_path / 'a.plan.json')!r})\n"
        "block.__enter__()\n"
        "print('ranks', *rank_processes())\n"
    )
    done = warm.run(["-c", code], cwd=Path(__file__).parents[2], capture_output=True, timeout=300)
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
    with pytest.raises(
        WeightsChanged, match=r"\.safetensors was written to .* parameters are NaN now; load the pipeline"
    ):
        engine.close()
    after = values(pipe.unet)
    assert {name for name in before if not torch.equal(after[name], before[name])} == released
    assert all(after[name].isnan().all() for name in released)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_and_variants_are_let_go_of(saved: Path, plan: Plan, tmp_path: Path, variant: str | None) -> None:
    pipe = pipelines.load(saved)
    if variant:
        pipe.unet.half()
    pipe.unet.save_pretrained(tmp_path, variant=variant, max_shard_size="300KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    pipe.unet = type(pipe.unet).from_pretrained(tmp_path, variant=variant, torch_dtype=pipe.unet.dtype)
    with parallelize(pipe, plan) as engine:
        own, others = (held.keys() for held in engine._first._distribution._held)
        assert engine._first._weights.released == others - own


@pytest.mark.parametrize("kind", ["bin", "fp16"])
def test_weights_that_no_safetensors_file_holds_as_they_are_stay_in_memory(
    pipe: Any, plan: Plan, tmp_path: Path, kind: str
) -> None:
    """From pickled files, and from half precision: the ranks are sent them, and what is done to them is followed."""
    from diffusers import UNet2DConditionModel

    folder = tmp_path / kind
    with torch.no_grad():
        for parameter in pipe.unet.parameters():
            parameter.mul_(1.01)  # so that no other file holds the same
    if kind == "bin":
        pipe.unet.save_pretrained(folder, safe_serialization=False)
        pipe.unet = UNet2DConditionModel.from_pretrained(folder, use_safetensors=False)
    else:
        pipe.unet.half().save_pretrained(folder, variant="fp16")
        pipe.unet = UNet2DConditionModel.from_pretrained(folder, variant="fp16")
    expected = pipelines.call(pipe, steps=2)
    with parallelize(pipe, plan, exact=True) as engine:
        assert "conv_in.weight" not in engine._first._weights.released
        assert torch.equal(pipelines.call(pipe, steps=2), expected)
        (file,) = folder.glob("*.bin" if kind == "bin" else "*.safetensors")
        with file.open("r+b") as written:
            written.write(bytes(4096))
        assert torch.equal(pipelines.call(pipe, steps=2), expected)
        with torch.no_grad():
            pipe.unet.conv_in.weight.mul_(1.5)
        changed = pipelines.call(pipe, steps=2)
    assert not torch.equal(changed, expected)
    assert torch.equal(pipelines.call(pipe, steps=2), changed)
