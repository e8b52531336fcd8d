"""measure covers every signature, in any dtype and layout, and says clearly what it cannot do. No time is asserted."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch import nn

import partitioner.costs.measure
import partitioner.costs.operator_calls
from partitioner.costs.lookup import apply_profile
from partitioner.costs.measure import distinct_calls, measure
from partitioner.costs.signature import signature
from partitioner.costs.timing import measure_whole
from partitioner.errors import MeasureError
from partitioner.graph.export import trace
from partitioner.graph.ir import TracedGraph
from profiles.cost_profile import CostProfile


class Mixture(nn.Module):
    """Convolution, attention, embedding, masks, in-place writes, views, literals and factories."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1, dtype=dtype)
        self.norm = nn.GroupNorm(2, 8, dtype=dtype)
        self.linears = nn.ModuleList(nn.Linear(8, 8, dtype=dtype) for _ in range(3))
        self.table = nn.Embedding(10, 8, dtype=dtype)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden = self.norm(self.conv(x)).flatten(2).transpose(1, 2)
        hidden = hidden + self.table(timestep.long()).unsqueeze(1).expand(-1, hidden.shape[1], -1)
        for linear in self.linears:
            hidden = linear(hidden)
        heads = hidden.unflatten(-1, (2, 4)).transpose(1, 2)
        heads = nn.functional.scaled_dot_product_attention(heads, heads, heads)
        first, second = heads.chunk(2, dim=-1)
        rotated = torch.empty_like(heads)
        rotated[..., :2] = first * 2
        rotated[..., 2:] = second
        where = torch.where(torch.arange(4, device=x.device) > 1, rotated, 0.0)
        return where, torch.zeros(2, dtype=torch.int64, device=x.device), torch.fft.rfft(x.float()).abs()


def mixture_graph(dtype: torch.dtype = torch.float32) -> TracedGraph:
    inputs = {"x": torch.zeros(2, 4, 6, 6, dtype=dtype), "timestep": torch.tensor([1.0, 2.0])}
    return trace(Mixture(dtype).eval(), inputs, {"x": "latent", "timestep": "timestep"})


@pytest.fixture(scope="module")
def profile() -> CostProfile:
    return measure(mixture_graph(), "cpu", command="a test")


def test_every_signature_is_measured_once(profile: CostProfile) -> None:
    graph = mixture_graph()
    expected = {signature(graph, node) for node in graph.nodes if node.target != "operator.getitem"}
    assert profile.signatures.keys() == expected
    assert len(expected) < len(graph.nodes)
    for cost in profile.signatures.values():
        assert cost.median_ms > 0
        assert cost.iqr_ms >= 0
        assert cost.launch_ms == 0


def test_profile_says_what_it_is(profile: CostProfile) -> None:
    assert (profile.device, profile.mode, profile.dtype) == ("cpu", "eager", "float32")
    assert profile.command == "a test"
    assert profile.versions["torch"] == torch.__version__
    assert profile.device_name


def test_profile_prices_its_graph_completely(profile: CostProfile, tmp_path: Any) -> None:
    profile.save(tmp_path / "profile.json")
    graph = mixture_graph()
    costs = apply_profile(CostProfile.load(tmp_path / "profile.json"), graph)
    assert costs.source == "measured"
    assert costs.covered == pytest.approx(1.0)
    for node in graph.nodes:
        found = profile.signatures.get(signature(graph, node))
        assert costs.nodes[node.name].ms == (found.median_ms if found else 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_measured_in_its_own_dtype(dtype: torch.dtype) -> None:
    profile = measure(mixture_graph(dtype))
    assert profile.dtype == str(dtype).removeprefix("torch.")
    assert any(f"conv2d.default({profile.dtype}" in text for text in profile.signatures)


def test_threads_are_as_before_and_one_while_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    summarise_as_is = partitioner.costs.measure.summarise

    def spy(samples: Any, launch_ms: float = 0.0) -> Any:
        seen.add(torch.get_num_threads())
        assert len(samples) >= 5
        return summarise_as_is(samples, launch_ms)

    monkeypatch.setattr(partitioner.costs.measure, "summarise", spy)
    torch.set_num_threads(2)
    try:
        measure(mixture_graph())
        assert torch.get_num_threads() == 2
        with pytest.raises(RuntimeError, match="as it must"):
            measure_whole(lambda: (_ for _ in ()).throw(RuntimeError("as it must")))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert seen == {1}


def test_progress_reaches_the_end_whatever_fits_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = mixture_graph()
    total = len(distinct_calls(graph, "eager"))
    monkeypatch.setattr(partitioner.costs.measure, "BATCH_BYTES", 4000)
    reports: list[tuple[int, int]] = []
    profile = measure(graph, progress=lambda done, of: reports.append((done, of)))
    assert len(profile.signatures) == total
    assert len(reports) > 1
    assert reports == sorted(set(reports))
    assert reports[-1] == (total, total)


def test_no_call_changes_what_another_one_reads() -> None:
    """In-place operators write to tensors of their own: measuring twice in one process is the same work."""
    graph = mixture_graph()
    writers = [node for node in graph.nodes if node.target == "aten.copy_.default"]
    assert writers
    first = measure(graph)
    assert {signature(graph, node) for node in writers} <= first.signatures.keys() == measure(graph).signatures.keys()


def test_unsupported_operator_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(target: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError("\"conv\" not implemented for 'Half'\nand more")

        return call

    monkeypatch.setattr(partitioner.costs.operator_calls, "resolve", refuse)
    with pytest.raises(
        MeasureError, match=r"float32\) does not run on cpu: \"conv\" not implemented for 'Half'; measure"
    ):
        measure(mixture_graph())


@pytest.mark.parametrize(
    ("device", "mode", "expected"),
    [
        ("cpu", "cuda_graph", "needs a GPU"),
        ("cuda:99", "eager", "is not there: torch sees"),
        ("abacus", "eager", "cannot measure on 'abacus'"),
        ("meta", "eager", "cannot measure on 'meta'"),
    ],
)
def test_impossible_devices_are_refused(device: str, mode: Any, expected: str) -> None:
    with pytest.raises(MeasureError, match=expected):
        measure(mixture_graph(), device, mode=mode)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_operators_are_measured_without_the_call() -> None:
    def both(sample: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(sample).flatten(1).softmax(-1)

    class Net(nn.Module):
        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            return both(sample)

    graph = trace(Net().eval(), {"sample": torch.zeros(2, 64, 64)}, {"sample": "latent"})
    profile = measure(graph, mode="compiled")
    assert profile.mode == "compiled"
    assert [text.split("(")[0] for text in profile.signatures] == ["aten.gelu.default", "aten.softmax.int"]
    assert len({cost.launch_ms for cost in profile.signatures.values()}) == 1
    assert all(cost.launch_ms > 0 for cost in profile.signatures.values())
    assert apply_profile(profile, graph).covered == pytest.approx(1.0)
    assert len(measure_whole(lambda: both(torch.ones(2, 64, 64)), mode="compiled", calls=3)) >= 3


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["eager", "cuda_graph"])
def test_gpu_tells_launches_from_kernels(mode: Any) -> None:
    profile = measure(mixture_graph(), "cuda:0", mode=mode)
    graph = mixture_graph()
    assert (profile.device, profile.mode) == ("cuda", mode)
    assert profile.signatures.keys() == distinct_calls(graph, mode).keys()
    assert all(cost.median_ms > 0 and cost.launch_ms > 0 for cost in profile.signatures.values())
    assert apply_profile(profile, graph).covered == pytest.approx(1.0)
