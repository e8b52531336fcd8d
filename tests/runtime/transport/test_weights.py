"""Where parameters are read from, and what the driver lets go of meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from partitioner.graph.export import trace
from partitioner.graph.ir import Parameter, TensorMeta
from runtime.errors import EngineError, PlanMismatch
from runtime.transport.weights import Weights, digest_of, read_stored

ROLES = {"sample": "latent", "timestep": "timestep", "encoder_hidden_states": "prompt"}


@pytest.fixture
def unet(tmp_path: Path) -> Any:
    """A small UNet, loaded from a folder."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    made = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
    )  # fmt: skip
    made.save_pretrained(tmp_path / "unet")
    return UNet2DConditionModel.from_pretrained(tmp_path / "unet")


def wanted(module: torch.nn.Module, *paths: str) -> tuple[Parameter, ...]:
    state = module.state_dict()
    return tuple(
        Parameter(path.replace(".", "_"), path, TensorMeta(tuple(state[path].shape), state[path].stride(), "float32"))
        for path in paths
    )


def example() -> dict[str, Any]:
    return {
        "sample": torch.zeros(1, 4, 8, 8),
        "timestep": torch.tensor(1.0),
        "encoder_hidden_states": torch.zeros(1, 3, 8),
        "return_dict": False,
    }


def test_only_what_a_file_holds_is_read_from_it(unet: Any) -> None:
    with torch.no_grad():
        unet.conv_out.weight.mul_(2)
    weights = Weights(unet)
    files = weights.files_of(wanted(unet, "conv_in.weight", "conv_out.weight"))
    assert list(files) == ["conv_in.weight"]
    stored = read_stored(files["conv_in.weight"], "conv_in.weight", wanted(unet, "conv_in.weight")[0].meta)
    assert torch.equal(stored, unet.conv_in.weight)


def test_released_parameters_come_back_bit_for_bit(unet: Any) -> None:
    with torch.no_grad():
        unet.conv_out.weight.mul_(2)
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    weights = Weights(unet)
    weights.release({"conv_in.weight"})
    names = set(dict(unet.named_parameters()))
    assert weights.released == names - {"conv_in.weight", "conv_out.weight"}  # kept, and in no file
    assert sum(p.numel() for p in unet.parameters()) == unet.conv_in.weight.numel() + unet.conv_out.weight.numel()
    given = weights.tensors_of(wanted_by(before, "conv_in.bias", "conv_out.weight"))
    assert torch.equal(given["conv_in.bias"], before["conv_in.bias"])
    assert torch.equal(given["conv_out.weight"], before["conv_out.weight"])
    weights.restore()
    assert not weights.released
    after = unet.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def wanted_by(state: dict[str, torch.Tensor], *paths: str) -> tuple[Parameter, ...]:
    return tuple(
        Parameter(path, path, TensorMeta(tuple(state[path].shape), state[path].stride(), "float32")) for path in paths
    )


@pytest.mark.slow
def test_a_denoiser_is_traced_alike_while_its_parameters_are_released(unet: Any) -> None:
    unet.eval()
    whole = trace(unet, example(), ROLES)
    weights = Weights(unet)
    weights.release(set())
    assert weights.released
    with weights.traceable():
        again = trace(unet, example(), ROLES)
    assert again.fingerprint == whole.fingerprint
    assert all(p.numel() == 0 for p in unet.parameters())
    with pytest.raises(EngineError, match="is run by an engine now"):
        unet(**example())
    weights.restore()
    assert torch.isfinite(unet(**example())[0]).all()


def test_a_cast_denoiser_is_read_in_its_own_dtype(unet: Any) -> None:
    half = unet.to(torch.float16)
    before = half.conv_in.weight.clone()
    weights = Weights(half)
    weights.release(set())
    assert "conv_in.weight" in weights.released
    weights.restore()
    assert half.conv_in.weight.dtype == torch.float16
    assert torch.equal(half.conv_in.weight, before)


def test_tied_parameters_are_kept_together(tmp_path: Path) -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = torch.nn.Linear(4, 4, bias=False)
            self.two = torch.nn.Linear(4, 4, bias=False)
            self.two.weight = self.one.weight
            self.config = type("Config", (), {"_name_or_path": str(tmp_path)})()

    module = Tied()
    save_file({"one.weight": module.one.weight.detach()}, tmp_path / "model.safetensors")
    weights = Weights(module)
    weights.release({"two.weight"})
    assert not weights.released


def test_without_files_everything_stays(unet: Any) -> None:
    module = torch.nn.Linear(3, 3)
    weights = Weights(module)
    weights.release(set())
    assert not weights.released
    with pytest.raises(PlanMismatch, match=r"no parameter or buffer other\.weight"):
        weights.tensors_of([Parameter("x", "other.weight", TensorMeta((3,), (1,), "float32"))])


def test_a_file_that_is_gone_is_named(unet: Any) -> None:
    weights = Weights(unet)
    weights.release(set())
    file = next(iter(Path(unet.config._name_or_path).glob("*.safetensors")))
    kept = file.read_bytes()
    file.unlink()
    with pytest.raises(EngineError, match=r"cannot be read back from .*diffusion_pytorch_model\.safetensors"):
        weights.restore()
    file.write_bytes(kept)
    weights.restore()
    assert not weights.released


def test_a_file_counts_as_the_same_by_what_it_holds(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1.0, dtype=torch.bfloat16), "c": torch.zeros(0, 3)}
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    save_file(tensors, one)
    save_file({**tensors, "a": tensors["a"].view(3, 2), "c": tensors["c"].double()}, other)
    for name in tensors:
        assert digest_of(one, name) is not None
        assert (digest_of(one, name) == digest_of(other, name)) == (name == "b")
    assert digest_of(tmp_path / "none.safetensors", "a") is None
    assert digest_of(one, "d") is None
    one.write_bytes(b"garbage")
    assert digest_of(one, "a") is None
