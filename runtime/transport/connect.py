"""connected_mailbox: a rank's side of the transport between processes, whichever these ranks need."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping

import torch

from runtime.devices.places import with_index
from runtime.errors import StartupError
from runtime.transport.checked import CheckedMailbox
from runtime.transport.handshake import shut_down
from runtime.transport.mesh import connect_mesh
from runtime.transport.mixed import MixedMailbox
from runtime.transport.neighbours import find_neighbours
from runtime.transport.rendezvous import Rendezvous
from runtime.transport.same_machine import SUPPORTED, SameMachineMailbox
from runtime.transport.sockets import SocketMailbox


def connected_mailbox(
    rank: int,
    world: int,
    lines: Mapping[int, socket.socket],
    device: str,
    rendezvous: Rendezvous,
    *,
    plan_hash: int,
    host: str,
    secret: bytes,
    announce_timeout_s: float,
    on_error: Callable[[BaseException], None],
) -> CheckedMailbox:
    """A mailbox that is connected to those of the other ranks.

    Args:
        rank: this process's.
        world: how many ranks there are.
        lines: of ranks that one process has started, the ends of the lines to the others; empty: they connect over
            TCP, and those that then find that they share memory use that.
        device: where this rank computes.
        rendezvous: where the ranks find each other then, and until when.
        plan_hash: the first bits of the plan's hash; a message of another plan is refused.
        host: the address of this machine to listen on until all are connected.
        secret: that all ranks of this start know.
        announce_timeout_s: how long before its table is registered a message may arrive.
        on_error: called with an EngineError, or with PeerLost where a connection broke; from any thread.

    Raises:
        StartupError: not all could be connected in time.
    """
    far: dict[int, socket.socket] = {}
    if not lines:
        far = connect_mesh(rank, world, host=host, secret=secret, rendezvous=rendezvous)
        lines = _neighbours_among(far, rank, secret, rendezvous)
    named = torch.device(with_index(device))
    if not lines and not (SUPPORTED and named.type == "cuda"):
        return SocketMailbox(rank, far, plan_hash=plan_hash, announce_timeout_s=announce_timeout_s, on_error=on_error)
    if not far:
        return SameMachineMailbox(
            rank, lines, named, plan_hash=plan_hash, announce_timeout_s=announce_timeout_s, on_error=on_error
        )
    return MixedMailbox(
        rank, lines, far, named, plan_hash=plan_hash, announce_timeout_s=announce_timeout_s, on_error=on_error
    )


def _neighbours_among(
    far: dict[int, socket.socket], rank: int, secret: bytes, rendezvous: Rendezvous
) -> dict[int, socket.socket]:
    """The lines to ranks that share this one's memory, whose connections are taken out of ``far`` and closed."""
    try:
        near = find_neighbours(rank, far, secret=secret, rendezvous=rendezvous)
    except OSError as error:
        for line in far.values():
            shut_down(line)
            line.close()
        raise StartupError(f"the ranks cannot connect: {error}") from None
    for peer in near:
        far.pop(peer).close()
    return near
