"""Caller: found by what it is, and not kept alive."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import pytest
import torch
from torch import nn

from runtime.driver.callers import Caller, caller_of

DENOISER = nn.Identity()


class Pipeline:
    def __init__(self, **parts: Any) -> None:
        self.__dict__.update(parts)

    def __call__(self) -> Caller:
        return (lambda ignored: caller_of(DENOISER, lambda: "the loop's own"))("ignored")


class ModulePipeline(nn.Module):
    """As some have: a module of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.unet, self.scheduler = DENOISER, "a module's"

    def forward(self) -> Caller:
        return caller_of(DENOISER)


def test_the_nearest_object_with_the_denoiser_and_a_scheduler_calls() -> None:
    pipe = Pipeline(transformer=DENOISER, scheduler="its own")
    outer = Pipeline(unet=DENOISER, scheduler="another", run=lambda _self: pipe())
    caller = outer.run(outer)
    assert caller.pipeline is not None
    assert caller.scheduler is not None
    assert (caller.pipeline(), caller.scheduler()) == (pipe, "its own")

    def loop(pipe: Pipeline) -> Caller:
        return caller_of(DENOISER)

    assert loop(outer).pipeline() is outer  # type: ignore[misc]
    module = ModulePipeline()
    assert module().pipeline() is module  # type: ignore[misc]


@pytest.mark.slow
def test_a_compiled_denoiser_is_the_denoiser() -> None:
    pipe = Pipeline(unet=torch.compile(DENOISER), scheduler="its own")
    assert pipe().pipeline() is pipe  # type: ignore[misc]


def test_what_lacks_the_denoiser_or_a_scheduler_is_no_pipeline() -> None:
    for parts in ({"unet": DENOISER}, {"unet": nn.Identity(), "scheduler": ""}, {"unet": DENOISER, "scheduler": None}):
        caller = Pipeline(**parts)()
        assert caller.pipeline is None
        assert caller.scheduler is not None
        assert caller.scheduler() == "the loop's own"


def test_threads_tasks_pipelines_and_schedulers_are_told_apart() -> None:
    pipe = Pipeline(unet=DENOISER, scheduler="its own")
    mine, again, others = pipe(), pipe(), []
    thread = threading.Thread(target=lambda: others.append(pipe()))
    thread.start()
    thread.join()

    async def in_task() -> Caller:
        return pipe()

    others += [asyncio.run(in_task()), Pipeline(unet=DENOISER, scheduler="its own")()]
    assert mine.is_same(again)
    assert not any(mine.may_be(other) for other in others)
    assert others[0].is_gone
    assert others[1].is_gone
    assert not mine.is_gone
    pipe.__dict__["scheduler"] = "put in later"
    assert mine.is_gone


def test_nothing_of_a_caller_is_kept_alive() -> None:
    caller = Pipeline(unet=DENOISER, scheduler="its own")()
    gc.collect()
    assert caller.is_gone
