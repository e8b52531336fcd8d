"""connect_mesh: a TCP connection between every two ranks of an engine, whose machines may be several.

    rank                                   driver                  every other rank
    opens a door on its machine's address
    announces it            ->             passes it on     ->     connects, if its number is higher
    the last one has come: closes the door

All prove that they know the secret of this start, which the driver has sent each rank over its own connection. So only
ranks of this engine come in, and once all are connected nothing listens.
"""

from __future__ import annotations

import socket

from runtime.errors import StartupError
from runtime.transport.door import Door, enter
from runtime.transport.handshake import shut_down
from runtime.transport.rendezvous import Rendezvous


def connect_mesh(
    rank: int, world: int, *, host: str, secret: bytes, rendezvous: Rendezvous
) -> dict[int, socket.socket]:
    """Connect this rank to all others.

    Args:
        rank: this process's.
        world: how many ranks there are.
        host: the address of this machine to listen on, and so the network interface.
        secret: that all ranks of this start know.
        rendezvous: where the ranks find each other, and until when.

    Returns:
        Other rank -> the connection to it.

    Raises:
        StartupError: not all could be connected in time.
    """
    lines: dict[int, socket.socket] = {}

    def entered(peer: int, line: socket.socket) -> None:
        lines[peer] = line
        rendezvous.notify()

    higher = range(rank + 1, world)
    try:
        door = Door(host, secret, higher, entered) if higher else None
        try:
            if door is not None:
                rendezvous.set(rank, door.address)
            for peer in range(rank):
                address = rendezvous.get(peer)
                try:
                    lines[peer] = enter(address, secret, rank, rendezvous.until, lambda: not rendezvous.failed)
                except OSError as error:
                    raise ConnectionError(f"rank {rank} does not reach rank {peer} at {address[0]}: {error}") from None
            rendezvous.wait_for(
                lambda: len(lines) == world - 1,
                f"rank {rank} at {host} was not reached by every rank from {rank + 1} on",
            )
        finally:
            if door is not None:
                door.close()
    except OSError as error:
        for line in lines.values():
            shut_down(line)
            line.close()
        raise StartupError(f"the ranks cannot connect: {error}") from None
    return lines
