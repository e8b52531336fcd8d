"""AsyncDiff's policy does what its split says, and bench prints what scripts rely on. No time is asserted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from partitioner.baselines.asyncdiff_split import broadcast_bytes
from partitioner.graph.export import trace
from runtime.driver.noise_schedule import NoiseSchedule, noise_schedule_of
from runtime.driver.output_forecast import forecast_of
from runtime.errors import EngineError
from tools.bench import __main__ as bench
from tools.bench.asyncdiff_policy import AsyncDiffPolicy, even_policy, published_policy
from tools.bench.denoiser_calls import CallArguments, DenoiserCalls
from tools.bench.hooked_denoiser import HookedDenoiser
from tools.bench.policy_ranks import PolicyRanks, PolicyRun
from tools.bench.table import table
from tools.denoisers import DENOISERS, Denoiser

STEPS, WARMUP = 5, 2
KEYS = {
    "denoiser", "ranks", "sequential_ms", "sequential_2_threads_ms", "async_ms", "exact_ms", "asyncdiff_policy_ms",
    "ratio_to_sequential", "ratio_to_asyncdiff_policy", "bytes_per_step", "asyncdiff_policy_bytes_per_step",
    "communication_share", "wait_share", "simulated_ms", "lookahead_ms", "async_step_ms", "lookahead_step_ms",
}  # fmt: skip


def unet() -> Denoiser:
    """Of the modules of Stable Diffusion 1.5, and tiny."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    module = UNet2DConditionModel(
        sample_size=8, block_out_channels=(4, 4, 8, 8), norm_num_groups=2, attention_head_dim=2, cross_attention_dim=8
    ).eval()
    inputs = {
        "sample": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor(501.0),
        "encoder_hidden_states": torch.randn(2, 3, 8),
        "return_dict": False,
    }
    return module, inputs, {"sample": "latent", "timestep": "timestep", "encoder_hidden_states": "prompt"}


def transformer() -> nn.Module:
    from diffusers import PixArtTransformer2DModel

    module: nn.Module = PixArtTransformer2DModel(
        sample_size=8,
        num_attention_heads=2,
        attention_head_dim=4,
        num_layers=5,
        cross_attention_dim=8,
        caption_channels=8,
        use_additional_conditions=False,
    )
    return module


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return unet()


@pytest.fixture(scope="module")
def calls(denoiser: Denoiser) -> list[CallArguments]:
    _, inputs, _ = denoiser
    latents = torch.randn(STEPS, *inputs["sample"].shape, generator=torch.Generator().manual_seed(1))
    return [{**inputs, "sample": latent, "timestep": torch.tensor(900.0 - 100 * i)} for i, latent in enumerate(latents)]


@pytest.fixture(scope="module")
def exact_outputs(denoiser: Denoiser, calls: list[CallArguments]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [denoiser[0](**arguments)[0] for arguments in calls]


@pytest.fixture(scope="module")
def ranks(denoiser: Denoiser) -> Iterator[PolicyRanks]:
    with PolicyRanks(denoiser[0], published_policy("sd15", 2)) as started:
        yield started


@pytest.fixture(scope="module")
def lagged(ranks: PolicyRanks, calls: list[CallArguments]) -> PolicyRun:
    return ranks.run(calls, WARMUP)


def contiguous(value: Any) -> Any:
    return value.contiguous() if isinstance(value, torch.Tensor) else tuple(map(contiguous, value))


class Reference:
    """The policy by another way: the whole denoiser once for each component, with outputs replaced afterwards."""

    def __init__(self, denoiser: nn.Module, policy: AsyncDiffPolicy) -> None:
        self.denoiser, self.policy = denoiser, policy
        self.last: dict[str, Any] = {}
        self.made: dict[str, Any] = {}

    def outputs(self, calls: Sequence[CallArguments], warmup: int) -> list[torch.Tensor]:
        results = []
        for number, arguments in enumerate(calls):
            computing: list[set[str]] = [set(self.policy.owner)]
            if number >= warmup:
                computing = [set(paths) for paths in self.policy.components]
            results.append([self.call(paths, arguments) for paths in computing][-1])
            self.last, self.made = self.made, {}
        return results

    def call(self, paths: set[str], arguments: CallArguments) -> torch.Tensor:
        handles = [
            self.denoiser.get_submodule(path).register_forward_hook(partial(self.hook, path, path in paths))
            for path in self.policy.owner
        ]
        with torch.no_grad():
            result: torch.Tensor = self.denoiser(**arguments)[0]
        for handle in handles:
            handle.remove()
        return result

    def hook(self, path: str, computes: bool, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        if computes:
            # what is sent is contiguous, which the last bits of what is computed from it depend on
            self.made[path] = contiguous(output)
        return output if computes else self.last[path]


@pytest.mark.processes
def test_exact_calls_equal_the_module(
    ranks: PolicyRanks, calls: list[CallArguments], exact_outputs: list[torch.Tensor]
) -> None:
    run = ranks.run(calls, warmup=STEPS)
    assert all(torch.equal(a, b) for a, b in zip(run.outputs, exact_outputs, strict=True))
    # only what the first lagged call would need is on its way: the last exact call's output
    assert run.sent_bytes == (0,) * (STEPS - 1) + (exact_outputs[0].nbytes,)


@pytest.mark.processes
def test_lagged_calls_read_what_the_others_computed_a_call_ago(
    lagged: PolicyRun, denoiser: Denoiser, calls: list[CallArguments], exact_outputs: list[torch.Tensor]
) -> None:
    expected = Reference(denoiser[0], published_policy("sd15", 2)).outputs(calls, WARMUP)
    assert all(torch.equal(a, b) for a, b in zip(lagged.outputs, expected, strict=True))
    assert not torch.equal(lagged.outputs[WARMUP], exact_outputs[WARMUP])


@pytest.mark.processes
def test_a_trajectory_starts_anew(ranks: PolicyRanks, lagged: PolicyRun, calls: list[CallArguments]) -> None:
    again = ranks.run(calls, WARMUP)
    assert all(torch.equal(a, b) for a, b in zip(again.outputs, lagged.outputs, strict=True))


@pytest.mark.processes
def test_bytes_per_call_are_those_of_the_split(lagged: PolicyRun, denoiser: Denoiser) -> None:
    module, inputs, roles = denoiser
    split = [list(paths) for paths in published_policy("sd15", 2).components]
    hooked = broadcast_bytes(trace(module, inputs, roles), split)
    output = inputs["sample"].nbytes
    assert lagged.sent_bytes[WARMUP:] == (hooked + output,) * (STEPS - WARMUP)


@pytest.mark.processes
def test_measures_of_a_run_are_complete(lagged: PolicyRun) -> None:
    assert len(lagged.call_ms) == STEPS
    assert len(lagged.communication_ms) == len(lagged.resident_bytes) == 2


@pytest.mark.processes
def test_failure_of_a_rank_is_told(denoiser: Denoiser) -> None:
    expected = pytest.raises(EngineError, match=r"(?s)rank 0 .* failed.*unexpected keyword argument 'sample'")
    with PolicyRanks(nn.Identity(), AsyncDiffPolicy(((), ()), ())) as started, expected:
        started.run([denoiser[1]])


def test_even_policy_sends_only_the_border_of_a_transformer() -> None:
    policy = even_policy(transformer(), 2)
    blocks = [f"transformer_blocks.{i}" for i in range(5)]
    assert policy.components == (tuple(blocks[:2]), (*blocks[2:], "norm_out", "proj_out"))
    assert policy.sent == ("transformer_blocks.1",)


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="no split of sd15 into 7"):
        published_policy("sd15", 7)


def test_hooked_output_must_be_tensors() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, sample: Any) -> Any:
            return (self.inner(sample),)

    hooked = HookedDenoiser(Odd(), AsyncDiffPolicy((("inner",),), ("inner",)), 0, lambda tensor, source: None)
    with pytest.raises(TypeError, match="returns a str"):
        hooked(sample="no tensor")


def test_look_ahead_foresees_the_latents_of_the_calls() -> None:
    inputs = {"sample": torch.zeros(2, 4, 8, 8), "timestep": torch.zeros(())}
    calls = DenoiserCalls(inputs, {"sample": "latent", "timestep": "timestep"}, 10)
    made = calls.start()
    known = noise_schedule_of(calls.scheduler, float(made[0]["timestep"]))
    assert isinstance(known, NoiseSchedule)
    forecast = forecast_of(known, 1)
    for call, arguments in enumerate(made):
        forecast.observe(arguments["sample"])
        missed = forecast.missed
        assert missed is None if call < 2 else float(missed.abs().max()) < 1e-4
        if 0 < call < 9:
            forecast.predict(call + 1)


@pytest.mark.processes
def test_bench_prints_one_document(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(DENOISERS, "sd15-like", unet)
    options = ["--denoiser", "sd15-like", "--steps", "6", "--rounds", "1", "--microbatches", "2", "--period", "2"]
    assert bench.main([*options, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["environment"]["torch"] == str(torch.__version__)
    (row,) = document["results"]
    assert row.keys() >= KEYS
    assert (row["denoiser"], row["ranks"], row["microbatches"]) == ("sd15-like", 2, 2)
    # the ranks also get their inputs: the latent, the timestep and, once, the prompt
    # and of the last of the six calls something may be still to be sent
    assert row["predicted_bytes_per_step"] * 5 / 6 < row["bytes_per_step"]
    assert [rank["rank"] for rank in row["memory"]] == [0, 1]
    held = sum(rank["parameter_bytes"] for rank in row["memory"])
    assert held == sum(parameter.nbytes for parameter in unet()[0].parameters())
    assert all(rank["resident_bytes"] > rank["parameter_bytes"] for rank in row["memory"])
    ratio = row["lookahead_step_ms"] / row["async_on_chain_step_ms"]
    assert row["lookahead_step_to_async_on_chain_step"] == pytest.approx(ratio)
    assert row["multirate_ideal_ratio"] == pytest.approx(1 / 3)
    text = table(document)
    assert text.startswith("sd15-like: 2 ranks, adaptive, 6 steps")
    assert "period 2" in text


@pytest.mark.parametrize("option", ["--steps", "--rounds", "--warmup", "--period"])
def test_numbers_below_one_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([option, "0"]) == 2
    assert "expected a whole number from 1 on" in capsys.readouterr().err
