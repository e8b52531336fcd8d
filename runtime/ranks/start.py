"""start_ranks: checks that the ranks of plans can be had, and starts them as the options say."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from partitioner.plan.plan import Plan
from partitioner.plan.ranks import rank_of, seat_of
from partitioner.process import open_standard_files
from runtime.devices.acceleration import check_acceleration
from runtime.devices.places import check_count, local_places, room_for_graphs
from runtime.options import EngineOptions
from runtime.ranks.base import Ranks
from runtime.ranks.emulated import EmulatedRanks
from runtime.ranks.launch import Launcher, LocalLauncher
from runtime.ranks.processes import ProcessRanks
from runtime.ranks.threads import ThreadRanks
from runtime.ranks.torchrun_driver import torchrun_launcher
from runtime.worker.commands import Setup


def start_ranks(
    plans: Sequence[Plan], options: EngineOptions, devices: Sequence[str], held_on: Sequence[str | None]
) -> Ranks:
    """Start the ranks that serve the plans of all denoisers of an engine.

    Args:
        plans: by denoiser; each says how many ranks there are, and what they need.
        options: ``transport`` says what a rank is: a process, a thread, or emulated in the caller's thread.
        devices: rank -> the device that it computes on.
        held_on: by denoiser, the device that holds its parameters already; None where it has none.

    Returns:
        The ranks, ready for commands.

    Raises:
        InputError: the devices cannot do what the options want.
        PlanMismatch: there are too few or too many devices for a plan, or too little memory. Nothing was started.
        StartupError: a rank did not start.
    """
    check_count(plans, devices)
    check_acceleration(
        options.transport, devices, cuda_graphs=options.cuda_graphs is True, green_contexts=options.green_contexts
    )
    launcher: Launcher | None = None
    if options.transport == "processes":
        open_standard_files()
        launcher = torchrun_launcher(len(devices)) or LocalLauncher()
    places = launcher.places(devices, options.startup_timeout_s) if launcher is not None else local_places(devices)
    graphs = room_for_graphs(plans, places, held_on=held_on, wanted=options.cuda_graphs, one_process=launcher is None)
    setups = [
        [_setup_of(rank, plan, options, place.device, graphs=graphs) for plan in plans]
        for rank, place in enumerate(places)
    ]
    if options.transport == "emulation":
        return EmulatedRanks(setups)
    if launcher is None:
        return ThreadRanks(
            setups, options.step_timeout_s, options.startup_timeout_s, green_contexts=options.green_contexts
        )
    return ProcessRanks(
        setups,
        launcher,
        plan_hash=int(hashlib.sha256("".join(plan.digest for plan in plans).encode()).hexdigest()[:15], 16),
        threads=options.threads,
        startup_timeout_s=options.startup_timeout_s,
        step_timeout_s=options.step_timeout_s,
    )


def _setup_of(rank: int, plan: Plan, options: EngineOptions, device: str, *, graphs: bool) -> Setup:
    branch, component = seat_of(rank, plan.components)
    return Setup(
        rank=rank,
        component=component,
        ranks_of=tuple(rank_of(branch, k, plan.components) for k in range(plan.components)),
        device=device,
        predictor=options.predictor or plan.predictor,
        check_finite=options.check_finite,
        record=options.record,
        compile=options.compile,
        cuda_graphs=graphs,
        branch=branch,
        result_ranks=tuple(rank_of(b, plan.components - 1, plan.components) for b in range(plan.branches)),
    )
