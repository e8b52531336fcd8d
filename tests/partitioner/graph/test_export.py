"""trace: of fake and real modules alike, and what it refuses."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
import torch
from torch import nn

from partitioner.errors import TraceError
from partitioner.graph.export import fake_mode, trace
from tests.support.toy_denoiser import ROLES, Denoiser, inputs


def test_fake_and_real_modules_trace_alike_and_real_ones_stay_as_they_are() -> None:
    real = Denoiser().eval()
    before = {name: parameter.clone() for name, parameter in real.named_parameters()}
    with fake_mode():
        fake = Denoiser().eval()
        fingerprint = trace(fake, inputs(), ROLES).fingerprint
    assert trace(real, inputs(), ROLES).fingerprint == fingerprint
    for name, parameter in real.named_parameters():
        assert type(parameter.data) is torch.Tensor
        assert torch.equal(parameter, before[name])
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in real.modules())


def test_torchs_default_device_is_none_of_a_traces() -> None:
    module = Denoiser().eval()
    fingerprint = trace(module, inputs(), ROLES).fingerprint
    given = inputs()
    with torch.device("meta"):
        assert trace(module, given, ROLES).fingerprint == fingerprint
        with fake_mode():
            assert trace(Denoiser().eval(), inputs(), ROLES).fingerprint == fingerprint


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.gate(x) * t


class Gate(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class Autocast(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return torch.mm(x, x) * t


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * t * self.calls


class WriteToInput(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x.mul_(t)


class Mismatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Sequential(nn.Linear(4, 4), nn.Linear(5, 5))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.inside(x) * t


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Branching, r"module gate \(Gate\).*(?s:.)*What to do: control flow"),
        (Mismatch, r"module inside\.1 \(Linear\).*(?s:.)*What to do"),
        (
            Autocast,
            r"module <root> .*runs operators under torch\.autocast\('cpu', torch\.bfloat16\)",
        ),
        (Counting, r"calls in place|changes calls in its forward"),
        (WriteToInput, r"writes to x in place|changes x in its forward"),
    ],
)
def test_what_cannot_be_traced_is_refused_with_the_place_and_the_way_out(module: type[nn.Module], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        trace(module().eval(), {"x": torch.zeros(4, 4), "t": torch.tensor(1.0)}, ROLES, model="mine")


def test_what_is_not_said_about_the_inputs_is_asked_for() -> None:
    denoiser = Denoiser().eval()
    with pytest.raises(TraceError, match="argument context has no role"):
        trace(denoiser, inputs(), {"x": "latent", "t": "timestep"})
    with pytest.raises(TraceError, match="no tensor argument has the role 'latent'"):
        trace(denoiser, inputs(), {"x": "prompt", "t": "timestep", "context": "prompt"})
    with pytest.raises(ValueError, match="a role is one of latent, step, timestep, prompt, constant; got 'noise'"):
        trace(denoiser, inputs(), {**ROLES, "x": "noise"})
    with pytest.raises(TraceError, match=r"argument scale is a builtins\.complex"):
        trace(denoiser, {**inputs(), "scale": 1j}, ROLES)
    with pytest.raises(TraceError, match=r"training mode; call \.eval\(\) first"):
        trace(denoiser.train(), inputs(), ROLES)


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x * t + torch.randn_like(x)


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.dropout(x) * t


def test_random_numbers_are_refused_which_every_rank_would_draw_for_itself() -> None:
    arguments = {"x": torch.zeros(4, 4), "t": torch.tensor(1.0)}
    with pytest.raises(TraceError, match=r"module <root> \(.*torch.randn_like.*\) draws random numbers"):
        trace(Noisy().eval(), arguments, ROLES)
    dropping = Dropping().eval()
    trace(dropping, arguments, ROLES)
    dropping.dropout.train()
    with pytest.raises(TraceError, match=r"module dropout \(.*\) draws random .*call \.eval\(\)"):
        trace(dropping, arguments, ROLES)


class Seeded(nn.Module):
    """Draws the same numbers in every call, from a generator of its own."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x * t + torch.randn(4, generator=torch.Generator().manual_seed(0))


def test_numbers_from_a_generator_of_the_modules_own_are_refused_likewise() -> None:
    with pytest.raises(TraceError, match=r"module <root> \(.*draws random numbers.*which every rank would"):
        trace(Seeded().eval(), {"x": torch.zeros(4, 4), "t": torch.tensor(1.0)}, ROLES)


class Interrupted(nn.Module):
    """Ctrl-C comes while it is traced; where ``early``, while the trace is being prepared."""

    def __init__(self, early: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.early = early

    def register_forward_hook(self, *args: Any, **options: Any) -> Any:
        if self.early:
            signal.raise_signal(signal.SIGINT)
        return super().register_forward_hook(*args, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        try:
            raise KeyboardInterrupt
        finally:
            raise AssertionError("a mode of torch's cannot be left")


@pytest.mark.parametrize("early", [False, True])
def test_an_interrupt_ends_a_trace_as_an_interrupt_and_leaves_no_hook(early: bool) -> None:
    module = Interrupted(early).eval()
    with pytest.raises(KeyboardInterrupt):
        trace(module, {"x": torch.ones(4)}, {"x": "latent"})
    for child in module.modules():
        assert not child._forward_hooks
        assert not child._forward_pre_hooks


class Slow(nn.Module):
    """In a trace its forward goes on when another thread has been at a call for a moment."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.begun, self.called = Event(), Event()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        if torch.compiler.is_compiling() and not self.called.is_set():
            self.begun.set()
            self.called.wait(0.5)  # in vain where a trace begins anew: it has put the event back
            time.sleep(0.05)
        return self.last(x)


@torch.no_grad()
def test_a_call_by_another_thread_in_the_middle_of_a_trace_waits_for_its_end() -> None:
    module, latent = Slow().eval(), torch.ones(2, 8)
    wanted = module(latent)

    def call() -> torch.Tensor:
        assert module.begun.wait(20)
        module.called.set()
        with torch.no_grad():
            made: torch.Tensor = module(latent)
        return made

    with ThreadPoolExecutor(1) as pool:
        called = pool.submit(call)
        graph = trace(module, {"x": latent}, {"x": "latent"})
        assert torch.equal(called.result(), wanted)
    assert len(graph.nodes) == 2


def test_what_another_thread_draws_in_the_middle_of_a_trace_is_not_drawn_again() -> None:
    with fake_mode(), ThreadPoolExecutor(1) as pool:
        drawn = pool.submit(torch.rand, 8).result()
    assert not torch.equal(torch.rand(8), drawn)


def test_threads_that_trace_one_module_get_the_same_graph() -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 8)).eval()
    latent = torch.zeros(2, 8)
    with ThreadPoolExecutor(3) as pool:
        traced = [pool.submit(trace, module, {"input": latent}, {"input": "latent"}) for _ in range(6)]
    assert len({made.result().fingerprint for made in traced}) == 1
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in module.modules())
