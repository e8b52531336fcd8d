"""trace_failure: what cannot be traced is named by what it does."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import nn

from partitioner.errors import TraceError
from partitioner.graph.export import fake_mode, trace
from partitioner.graph.torch_private.fakes import memory_put_back


class Quantised(nn.Parameter):
    """A parameter with parts of its own."""


def denoiser() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()


def traced(module: nn.Module) -> Any:
    return trace(module, {"input": torch.zeros(2, 4)}, {"input": "latent"}, model="mine")


def test_a_parameter_that_ranks_cannot_load_is_named() -> None:
    module = denoiser()
    module[1].weight = Quantised(torch.zeros(4, 4))
    with pytest.raises(TraceError, match=r"parameter 1\.weight is of type Quantised.*without quantisation"):
        traced(module)


def test_so_is_one_that_is_sparse() -> None:
    module = denoiser()
    module[1].weight = nn.Parameter(torch.eye(4).to_sparse())
    with pytest.raises(TraceError, match=r"parameter 1\.weight has the layout sparse_coo.*convert it with .to_dense"):
        traced(module)


def test_a_hook_that_moves_weights_in_forward_is_said_to() -> None:
    module = denoiser()
    forward = module[1].forward

    def moving(x: torch.Tensor) -> Any:
        return forward(module[1].to(torch.bfloat16).to(torch.float32)(x))

    module[1].forward = moving
    with pytest.raises(TraceError, match=r"a hook has taken over the forward of module 1 \(Linear\).*offloading"):
        traced(module)


def test_what_the_system_refuses_is_no_fault_of_the_denoisers() -> None:
    class Refused(nn.Module):
        def forward(self, input: torch.Tensor) -> Any:
            raise FileNotFoundError("No usable temporary directory found")  # as torch does where it is first needed

    with pytest.raises(TraceError, match=r"refuses what torch asks for: No usable temporary .* \(TMPDIR\)$"):
        traced(Refused().eval())


def test_a_module_in_a_parallelize_block_is_said_to_be() -> None:
    class EnginesForward:
        engine = "an engine"

        def __call__(self, input: torch.Tensor) -> Any:
            raise ZeroDivisionError

    module = denoiser()
    module.forward = EnginesForward()
    with pytest.raises(TraceError, match=r"module <root> \(Sequential\) is inside a parallelize block"):
        traced(module)


@pytest.mark.slow
@pytest.mark.parametrize("feature", ["layerwise casting", "group offload", "torchao", "bitsandbytes"])
def test_features_of_diffusers_that_keep_weights_elsewhere(feature: str) -> None:
    from diffusers.models.modeling_utils import ModelMixin

    class Model(ModelMixin):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inside = denoiser()

        def forward(self, input: torch.Tensor) -> Any:
            return self.inside(input)

    model = Model().eval()
    expected = r"taken over the forward of module inside"
    if feature == "layerwise casting":
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    elif feature == "group offload":
        model.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")
    elif feature == "torchao":
        quantization = pytest.importorskip("torchao.quantization")
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
        expected = r"parameter inside\.0\.weight is of type Int8Tensor"
    else:
        nn_of = pytest.importorskip("bitsandbytes").nn
        model.inside[0] = nn_of.Linear8bitLt(4, 4, has_fp16_weights=False)
        expected = r"parameter inside\.0\.weight is of type Int8Params"
    with pytest.raises(TraceError, match=expected):
        traced(model)


def test_what_depends_on_values_is_said_in_words() -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[: int(x.sum())] if x.sum() > 0 else x

    with pytest.raises(TraceError, match=r"module <root> \(Branching\): a size or a branch depends on the values"):
        trace(Branching().eval(), {"x": torch.zeros(2, 4)}, {"x": "latent"})


def test_weights_that_a_hook_moved_are_put_back() -> None:
    weight = nn.Parameter(torch.ones(3))
    before = weight.data_ptr()
    for moved in (torch.zeros(3), torch.empty(3, dtype=torch.float16)):
        with contextlib.suppress(ValueError), memory_put_back([weight]):
            weight.data = moved
            raise ValueError
        assert weight.data_ptr() == before
        assert torch.equal(weight, torch.ones(3))


class Cut(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.inside = nn.Linear(4, 4)
        self.kind = kind

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        made = self.inside(input)
        if self.kind == "size":
            return made[: int(made.sum().item())]
        if self.kind == "branch" and made.sum() > 0:
            return made
        return made + torch.randn(2, 4) if self.kind == "noise" else made


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("size", r"return made[: int(made.sum().item())]"),
        ("branch", r'if self.kind == "branch" and made.sum() > 0:'),
        ("noise", r'return made + torch.randn(2, 4) if self.kind == "noise" else made'),
    ],
)
@pytest.mark.parametrize("weights", [True, False])
def test_the_line_is_named_and_no_graph_is_printed(
    kind: str, line: str, weights: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    with contextlib.nullcontext() if weights else fake_mode():
        module = nn.Sequential(nn.Linear(4, 4), Cut(kind)).eval()
        with pytest.raises(TraceError, match=r"module 1 \(.*") as raised:
            traced(module)
    assert __file__ in str(raised.value)
    assert line in str(raised.value)
    assert capfd.readouterr() == ("", "")
