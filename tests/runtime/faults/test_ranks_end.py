"""Ranks that end, stall, fail and lag while the engine runs."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time

import pytest
import torch

from partitioner.plan.boundaries import find_boundaries
from runtime.errors import ComponentFailed, EngineClosed, NonFiniteValue, RankDied, RankOutOfMemory, RankStalled
from tests.support.engines import equal, plan_of
from tests.support.traces import is_gone, rank_processes
from tests.support.trouble import (
    DEADLINE_S,
    HUGE,
    call_until_it_fails,
    cut,
    engine_for,
    fragile,
    graph_of,
    inputs,
    plan_for,
    soon,
    trajectory,
    twice,
    wait_until,
)

pytestmark = pytest.mark.processes

FRAGILE = fragile()
COMPONENTS = 3  # rank 0, the driver's, has component 2; rank 1 has 1; rank 2 has 0


@pytest.mark.parametrize("phase", ["warm-up", "async"])
@pytest.mark.parametrize("rank", [1, 2])
def test_a_killed_rank_is_named_in_two_seconds(rank: int, phase: str) -> None:
    """Fault 1."""
    plan = plan_for(FRAGILE, COMPONENTS)
    with engine_for(FRAGILE, plan, exact=phase == "warm-up") as engine:
        trajectory(engine)
        ranks = rank_processes()
        with soon(lambda: os.kill(ranks[rank - 1], signal.SIGKILL)) as killed:
            error = call_until_it_fails(engine, begin=6)
        assert time.monotonic() - killed[0] < 2
        assert isinstance(error, RankDied)
        assert error.rank == rank
        assert error.component == COMPONENTS - 1 - rank
        assert error.step is not None
        assert error.step > 0
        assert f"process {ranks[rank - 1]} was killed by signal 9 (SIGKILL" in str(error)
        assert all(map(is_gone, ranks))
        with pytest.raises(EngineClosed) as closed:
            engine(**inputs(0))
        assert closed.value.__cause__ is error


def test_a_rank_that_dies_between_calls_is_named_by_the_next_call() -> None:
    """Fault 1."""
    with engine_for(FRAGILE, plan_for(FRAGILE)) as engine:
        trajectory(engine)
        os.kill(rank_processes()[0], signal.SIGTERM)
        time.sleep(0.5)
        with pytest.raises(RankDied, match=r"signal 15 .SIGTERM"):
            engine(**inputs(6))


def test_a_stopped_rank_is_found_behind_those_that_wait_for_it() -> None:
    """Fault 2. Rank 0 waits for rank 1, which waits for rank 2, which is stopped."""
    graph = graph_of(FRAGILE)
    placed = cut(graph, COMPONENTS)
    plan = plan_of(graph, placed, warmup=2)
    read = {b.value for b in find_boundaries(graph, placed) if b.source == 0 and 1 in b.readers}
    with engine_for(FRAGILE, plan, exact=True) as engine:
        trajectory(engine)
        ranks = rank_processes()
        with soon(lambda: os.kill(ranks[1], signal.SIGSTOP)) as stopped:
            error = call_until_it_fails(engine, begin=6)
        assert time.monotonic() - stopped[0] < DEADLINE_S + 2
        assert isinstance(error, RankStalled)
        assert (error.rank, error.component) == (2, 0)
        assert error.value in read
        assert f"waits for %{error.value} of rank 2" in str(error)
        assert all(map(is_gone, ranks))


@pytest.mark.parametrize("rank", [0, 1])
def test_an_exception_in_a_component_keeps_its_traceback_and_node(rank: int) -> None:
    """Fault 3."""
    graph = graph_of(FRAGILE)
    own = "first" if rank == 0 else "last"  # what the other rank has
    placed = {node.name: int((own in node.key) == (rank == 1)) for node in graph.latent_nodes}
    placed[graph.latent_nodes[-1].name] = 1
    with engine_for(FRAGILE, plan_of(graph, placed, warmup=2)) as engine:
        trajectory(engine)
        bad = inputs(6)
        bad["x"][..., 0] = 99  # no such word
        begin = time.monotonic()
        with pytest.raises(ComponentFailed) as caught:
            twice(engine, bad)
        assert time.monotonic() - begin < 2
        error = caught.value
        assert error.rank == rank
        assert error.component == 1 - rank
        assert error.step == 6
        assert error.node is not None
        assert "words" in error.node
        assert "IndexError" in str(error)
        if rank:
            assert "Traceback" in error.remote_traceback
            assert "index out of range" in error.remote_traceback


def test_a_component_without_memory_names_itself_and_the_bytes() -> None:
    """Fault 9."""
    greedy = fragile(memory=True)
    graph = graph_of(greedy)
    node = next(node for node in graph.latent_nodes if "new_zeros" in node.target)
    placed = {**cut(graph, 2), node.name: 0}
    with engine_for(greedy, plan_of(graph, placed, warmup=2)) as engine:
        begin = time.monotonic()
        with pytest.raises(RankOutOfMemory) as caught:
            engine(**inputs(0))
        assert time.monotonic() - begin < 2
        assert caught.value.size_bytes == 4 * HUGE
        assert (caught.value.rank, caught.value.component, caught.value.step) == (1, 0, 0)
        assert caught.value.node == node.key
        assert not rank_processes()


def test_a_value_that_is_not_finite_is_found_where_it_arises() -> None:
    """Fault 10."""
    with engine_for(FRAGILE, plan_for(FRAGILE), check_finite=True) as engine:
        assert torch.isfinite(torch.stack(trajectory(engine))).all()
        bad = inputs(6)
        bad["x"][..., 1] = -1  # has no logarithm
        with pytest.raises(NonFiniteValue) as caught:
            twice(engine, bad)
        assert (caught.value.rank, caught.value.component, caught.value.step) == (1, 0, 6)
        assert caught.value.node is not None
        assert "log" in caught.value.node


def test_unasked_nothing_is_checked_or_replaced() -> None:
    """Fault 10."""
    bad = {**inputs(0), "x": torch.full_like(inputs(0)["x"], float("nan"))}
    bad["x"][..., 0] = 1
    with engine_for(FRAGILE, plan_for(FRAGILE)) as engine:
        with torch.no_grad():
            assert torch.equal(engine(**bad)[0].isnan(), FRAGILE(**bad)[0].isnan())
        assert equal(trajectory(engine, 2, seed=1), trajectory(FRAGILE, 2, seed=1))


def test_a_slow_rank_changes_no_bit() -> None:
    """Fault 11."""
    plan = plan_for(FRAGILE)
    with engine_for(FRAGILE, plan, transport="emulation") as engine:
        wanted = trajectory(engine, 12)
    with engine_for(FRAGILE, plan) as engine:
        (rank,) = rank_processes()
        outputs = []
        for call in range(12):
            os.kill(rank, signal.SIGSTOP)
            with soon(lambda: os.kill(rank, signal.SIGCONT), 0.05):
                outputs.append(engine(**inputs(call))[0])
    assert equal(outputs, wanted)


def test_ranks_that_are_stopped_and_go_on_again_and_again_change_no_bit() -> None:
    plan = plan_for(FRAGILE, COMPONENTS)
    with engine_for(FRAGILE, plan, transport="emulation") as engine:
        wanted = trajectory(engine, 40)
    with engine_for(FRAGILE, plan) as engine:
        ranks, over = rank_processes(), threading.Event()

        def storm() -> None:
            while not over.wait(0.002):
                for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGCONT):
                    for rank in ranks:
                        os.kill(rank, number)

        thread = threading.Thread(target=storm)
        thread.start()
        try:
            assert equal(trajectory(engine, 40), wanted)
        finally:
            over.set()
            thread.join()


def test_a_driver_that_was_stopped_for_longer_than_a_step_may_take_goes_on() -> None:
    """By Ctrl-Z, say. Its ranks go on a moment later."""
    plan = plan_for(FRAGILE)
    with engine_for(FRAGILE, plan, exact=True, step_timeout_s=1.5) as engine:
        outputs = trajectory(engine, 6)
        (rank,) = rank_processes()
        os.kill(rank, signal.SIGSTOP)
        with subprocess.Popen(
            ["sh", "-c", f"sleep 0.3; kill -STOP {os.getpid()}; sleep 2.5; kill -CONT {os.getpid()}; sleep 0.2; "
             f"kill -CONT {rank}"]
        ):  # fmt: skip
            outputs.append(engine(**inputs(6))[0])
        assert equal(outputs, trajectory(FRAGILE, 7))


def test_ranks_that_are_ended_at_once_and_many_times_end_the_engine_with_one_error() -> None:
    with engine_for(FRAGILE, plan_for(FRAGILE, COMPONENTS)) as engine:
        trajectory(engine)
        ranks = rank_processes()

        def storm() -> None:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGSTOP, signal.SIGCONT) * 3:
                for rank in ranks:
                    os.kill(rank, number)

        with soon(storm):
            error = call_until_it_fails(engine, begin=6)
        assert isinstance(error, RankDied)
        assert "was killed by signal 15 (SIGTERM)" in str(error)
        assert not rank_processes()


def test_the_drivers_own_work_needs_no_rank_to_have_finished_its_step() -> None:
    """What a pipeline does between calls overlaps with the other ranks: a call returns while one cannot compute."""
    plan = plan_for(FRAGILE)
    with engine_for(FRAGILE, plan, transport="emulation") as engine:
        wanted = trajectory(engine, 8)
    with engine_for(FRAGILE, plan) as engine:
        outputs = trajectory(engine, 6)
        (rank,) = rank_processes()
        mailbox = engine._ranks.workers[0].mailbox
        wait_until(lambda: engine.stats.ranks[1].steps >= 6 and mailbox.kept == len(plan.boundaries))
        os.kill(rank, signal.SIGSTOP)
        try:
            outputs.append(engine(**inputs(6))[0])
        finally:
            os.kill(rank, signal.SIGCONT)
        outputs.append(engine(**inputs(7))[0])
    assert equal(outputs, wanted)
