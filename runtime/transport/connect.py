"""connected_mailbox: a rank's side of the transport between processes, whichever these ranks need."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping

import torch

from partitioner.graph.torch_private import Store
from runtime.devices.places import with_index
from runtime.transport.checked import CheckedMailbox
from runtime.transport.gloo import GlooMailbox
from runtime.transport.same_machine import SameMachineMailbox


def connected_mailbox(
    rank: int,
    world: int,
    lines: Mapping[int, socket.socket],
    device: str,
    store: Store,
    *,
    plan_hash: int,
    host: str,
    timeout_s: float,
    announce_timeout_s: float,
    on_error: Callable[[BaseException], None],
) -> CheckedMailbox:
    """A mailbox that is connected to those of the other ranks.

    Args:
        rank: this process's.
        world: how many ranks there are.
        lines: of ranks on one machine, the ends of the lines to the others; empty: the ranks talk over gloo.
        device: where this rank computes.
        store: where the ranks find each other then.
        plan_hash: the first bits of the plan's hash; a message of another plan is refused.
        host: the address whose network interface gloo uses.
        timeout_s: for connecting.
        announce_timeout_s: how long before its table is registered a message may arrive.
        on_error: called with an EngineError, or with PeerLost where a connection broke; from any thread.
    """
    if lines:
        return SameMachineMailbox(
            rank,
            lines,
            torch.device(with_index(device)),
            plan_hash=plan_hash,
            announce_timeout_s=announce_timeout_s,
            on_error=on_error,
        )
    return GlooMailbox(
        rank,
        world,
        store,
        plan_hash=plan_hash,
        host=host,
        timeout_s=timeout_s,
        announce_timeout_s=announce_timeout_s,
        on_error=on_error,
    )
