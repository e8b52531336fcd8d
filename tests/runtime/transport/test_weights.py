"""Where parameters lie: which of them become views of a file, and what they are afterwards."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import nn

from partitioner.graph.nodes import Parameter, TensorMeta
from runtime.errors import EngineError, PlanMismatch
from runtime.transport import weights as weights_file
from runtime.transport.weight_files import offset_of
from runtime.transport.weights import Weights


class Loaded(nn.Module):
    """Two layers and a buffer; as from_pretrained makes it: views of the mapped file, whose folder it names."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.one = nn.Linear(40, 30)
        self.two = nn.Linear(30, 20)
        self.register_buffer("table", torch.arange(7.0))
        self.config = SimpleNamespace(_name_or_path=str(folder))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_file(
        {name: value.clone() for name, value in Loaded(tmp_path).state_dict().items()}, tmp_path / "a.safetensors"
    )
    return tmp_path


@pytest.fixture
def module(folder: Path) -> Loaded:
    return load(folder)


def load(folder: Path) -> Loaded:
    from safetensors import safe_open

    made = Loaded(folder)
    with safe_open(folder / "a.safetensors", framework="pt") as opened:
        made.load_state_dict({name: opened.get_tensor(name) for name in made.state_dict()}, assign=True)
    return made


def wanted(module: nn.Module, *paths: str) -> tuple[Parameter, ...]:
    state = module.state_dict()
    return tuple(
        Parameter(path, path, TensorMeta(tuple(state[path].shape), state[path].stride(), "float32"))
        for path in paths or state
    )


def release(module: nn.Module, *kept: str) -> Weights:
    weights = Weights(module)
    weights.take_out(wanted(module, *kept) if kept else ())
    weights.files_of(wanted(module))
    weights.release(list(module.state_dict()), kept)
    return weights


def values(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def is_mapped(tensor: torch.Tensor) -> bool:
    """Whether it lies in a mapped file of weights."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        if first <= tensor.data_ptr() < last:
            return ".safetensors" in line
    return False


PARAMETERS = {"one.weight", "one.bias", "two.weight", "two.bias"}


def test_released_parameters_are_views_of_a_file_and_come_back_bit_for_bit(module: Loaded) -> None:
    before = values(module)
    offsets = {name: offset_of(parameter) for name, parameter in module.named_parameters()}
    addresses = {tensor.data_ptr() for tensor in module.state_dict().values()}
    weights = release(module, "one.bias")
    assert weights.released == PARAMETERS - {"one.bias"}
    assert {path for path, tensor in module.state_dict().items() if is_mapped(tensor)} == weights.released
    assert same(values(module), before)
    assert weights.offsets_of(wanted(module, *offsets)) == tuple(offsets.values())
    assert not addresses & {tensor.data_ptr() for tensor in module.state_dict().values()}, "nothing keeps the first one"
    weights.restore()
    assert not weights.released
    for name, parameter in module.named_parameters():
        assert not is_mapped(parameter)
        assert offset_of(parameter) == offsets[name]
    assert same(values(module), before)


def test_whoever_reads_released_parameters_sees_their_values(module: Loaded, tmp_path: Path) -> None:
    before, inputs = values(module), torch.ones(1, 40)
    expected = module.two(module.one(inputs))
    weights = release(module)
    assert same(values(copy.deepcopy(module)), before)
    assert same(values(pickle.loads(pickle.dumps(module))), before)
    torch.save(module.state_dict(), tmp_path / "state.pt")
    assert same(torch.load(tmp_path / "state.pt"), before)
    save_model(module, str(tmp_path / "model.safetensors"))  # which refuses parts of larger storages
    assert same(load_file(tmp_path / "model.safetensors"), before)
    save_file(module.state_dict(), tmp_path / "a.safetensors")  # the file that they lie in
    assert torch.equal(module.two(module.one(inputs)), expected)
    assert not weights.lost()
    assert weights.files_of(wanted(module)).keys() == before.keys()
    with torch.no_grad():
        module.one.weight.add_(1)
    save_file(module.state_dict(), tmp_path / "a.safetensors")
    assert same(values(load(tmp_path)), values(module))
    weights.restore()
    assert same(values(load(tmp_path)), values(module))


def test_what_was_changed_meanwhile_stays_as_it_is(module: Loaded) -> None:
    before = values(module)
    weights = release(module)
    with torch.no_grad():
        module.one.weight.mul_(2)
    module.one.bias.data.mul_(3)  # raises no version
    module.two.weight.data = before["two.weight"].half()
    assert weights.files_of(wanted(module)).keys() == {"two.weight", "two.bias", "table"}, "halves can be read, too"
    module.two = nn.Sequential(module.two)  # type: ignore[assignment] # as LoRA's layers do, it moves paths
    weights.restore()
    assert torch.equal(module.one.weight, 2 * before["one.weight"])
    assert torch.equal(module.one.bias, 3 * before["one.bias"])
    assert torch.equal(module.two[0].weight, before["two.weight"].half())
    assert torch.equal(module.two[0].bias, before["two.bias"])
    assert not any(is_mapped(tensor) for tensor in module.state_dict().values())


@pytest.mark.parametrize("truncate", [False, True])
def test_a_file_that_is_written_to_in_place_is_noticed(module: Loaded, folder: Path, truncate: bool) -> None:
    before = values(module)
    weights = release(module)
    assert not weights.lost()
    module.two.bias.data = before["two.bias"].clone()
    file = folder / "a.safetensors"
    size = file.stat().st_size
    file.write_bytes(b"" if truncate else bytes(size))
    lost = weights.lost()
    path_of = {id(parameter): path for path, parameter in module.named_parameters()}
    assert {path_of[id(parameter)] for parameter in lost} == PARAMETERS - {"two.bias"}
    weights.put_back([(one, before[path_of[id(one)]]) for one in lost if one is not module.one.bias])
    assert [path_of[id(parameter)] for parameter in weights.lost()] == ["one.bias"]
    with pytest.raises(
        EngineError, match=r"a\.safetensors was written to .* its 1 parameters .* NaN now; load the pip"
    ):
        weights.restore()
    assert module.one.bias.isnan().all()
    del before["one.bias"]
    assert same({name: tensor for name, tensor in values(module).items() if name != "one.bias"}, before)


def test_where_no_file_was_written_to_no_parameter_is_looked_at(
    module: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call asks, and a denoiser has thousands."""
    held = release(module)
    with monkeypatch.context() as patched:
        patched.setattr(weights_file, "_memory", lambda _: pytest.fail("one was looked at"))
        assert not held.lost()
    held.restore()


def test_a_file_that_is_gone_or_replaced_does_no_harm(module: Loaded, folder: Path) -> None:
    before = values(module)
    weights = release(module)
    save_file({name: tensor + 1 for name, tensor in before.items()}, folder / "a.safetensors")
    assert not weights.lost()
    assert not weights.files_of(wanted(module)), "ranks would read other values"
    (folder / "a.safetensors").unlink()
    weights.restore()
    assert same(values(module), before)


def test_parameters_in_another_dtype_or_layout_than_the_file_stay(module: Loaded) -> None:
    module.one.half()
    module.two.weight.data = module.two.weight.data.t().contiguous().t()
    before = values(module)
    weights = release(module)
    assert weights.released == {"two.bias"}
    assert weights.files_of(wanted(module)).keys() == before.keys(), "ranks can read them all the same"
    assert same(values(module), before)


def test_a_cast_that_loses_nothing_is_read_from_the_file(folder: Path) -> None:
    module = load(folder).half()
    assert Weights(module).files_of(wanted(module)).keys() == module.state_dict().keys()
    assert not release(module).released


def test_tied_and_overlapping_parameters_stay_so(folder: Path) -> None:
    module = load(folder)
    module.three = nn.Linear(40, 30)
    module.three.weight = module.one.weight
    module.three.bias = nn.Parameter(module.one.bias.data[:])
    module.four = nn.Linear(30, 20)
    module.four.weight = module.two.weight
    weights = Weights(module)
    weights.files_of(wanted(module))
    weights.release(list(module.state_dict()), ["three.weight"])
    assert weights.released == {"two.weight", "two.bias"}
    with torch.no_grad():
        module.one.bias.fill_(5)
    assert (module.three.bias == 5).all()
    assert module.four.weight is module.two.weight
    weights.restore()


def written_through(module: nn.Module, kept: dict[str, torch.Tensor]) -> bool:
    """Whether a write through each of the kept tensors is one to the parameter of its name, and leaves it in place."""
    for tensor in kept.values():
        tensor.numpy()[...] += 1
    return same(values(module), kept)


def test_what_somebody_else_has_a_part_of_stays_where_it_is(module: Loaded) -> None:
    """As what state_dict() gave before: who writes to it writes to the parameters, in a file's memory or their own."""
    module.two.weight.data = module.two.weight.data.clone()
    kept = {name: module.state_dict()[name] for name in ("one.weight", "one.bias", "two.weight")}
    weights = release(module, "one.bias")
    assert weights.released == {"two.bias"}
    assert written_through(module, kept | {"two.bias": module.state_dict()["two.bias"]} | {"table": module.table})


@pytest.mark.parametrize("between", [False, True], ids=["after", "before and after"])
def test_so_does_what_was_taken_while_it_was_released(module: Loaded, between: bool) -> None:
    weights = release(module)
    kept = module.state_dict()
    if between:
        assert written_through(module, kept)
        weights.take_out_written(list(module.parameters()))
        assert not weights.released
    weights.restore()
    assert written_through(module, kept)


def test_what_is_left_in_cycles_is_nobodys(module: Loaded) -> None:
    holder = SimpleNamespace(state=module.state_dict())
    holder.itself = holder
    del holder
    assert release(module).released == PARAMETERS


def test_memory_that_processes_share_is_not_let_go_of(module: Loaded) -> None:
    module.one.share_memory()
    assert release(module).released == {"two.weight", "two.bias"}
    assert module.one.weight.is_shared()


def test_parameters_without_memory_are_refused(module: Loaded, folder: Path) -> None:
    module.two.weight = nn.Parameter(torch.empty(20, 30, device="meta"))
    with pytest.raises(
        PlanMismatch, match=f"^two.weight of this Loaded has no values .* moved there.* in {folder}, hold no"
    ):
        Weights(module)
    module.to("meta")
    with pytest.raises(PlanMismatch, match=r"^one.weight and 4 more of its 5 tensors of this Loaded have no values "):
        Weights(module)
    module.two._hf_hook = None  # as accelerate's offloading leaves one
    with pytest.raises(PlanMismatch, match=r"one\.weight of this Loaded is not in memory .* without it"):
        Weights(module)


def test_without_files_everything_stays() -> None:
    module = nn.Linear(3, 3)
    weights = release(module)
    assert not weights.released
    with pytest.raises(PlanMismatch, match=r"no parameter or buffer other\.weight"):
        weights.tensors_of([Parameter("x", "other.weight", TensorMeta((3,), (1,), "float32"))])


def test_parameters_made_in_inference_mode_stay(folder: Path) -> None:
    with torch.inference_mode():
        module = load(folder)
    weights = release(module)
    assert not weights.released
    assert weights.files_of(wanted(module)).keys() == module.state_dict().keys()
    assert module.one.weight.is_inference()


def test_tensors_of_parts_are_left_alone(module: Loaded) -> None:
    odd = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged)
    module.register_buffer("odd", odd)
    weights = Weights(module)
    everything = [*wanted(module, "one.weight"), Parameter("odd", "odd", TensorMeta((2,), (1,), "float32"))]
    assert weights.files_of(everything).keys() == {"one.weight"}
    weights.release(["one.weight", "odd"], [])
    assert weights.released == {"one.weight"}
    weights.restore()
    assert module.odd is odd
