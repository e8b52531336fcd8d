"""torchrun: ranks on what torchrun has started, on one machine or several.

torchrun runs the same script on every rank. Rank 0's process is the driver and goes through the script; the others are
*keepers* (keeper.py): where the script first needs an engine they serve the driver, until it ends, and end with it. For
each engine of the driver a keeper begins a process, whose connection goes straight to the driver, and tells how it
ended; so a rank that dies, stalls or fails ends its engine, as without torchrun, and not the job.

The driver opens a door on the address that faces torchrun's store, and leaves address and token there. Whoever has the
token is believed: the network between the machines has to be trusted, as torch.distributed trusts it.
"""

from __future__ import annotations

import os

from runtime.errors import StartupError
from runtime.ranks.torchrun_agent import keep, store_key
from runtime.ranks.torchrun_driver import DriverServer, driver_server, own_address
from runtime.transport.rendezvous import launcher_store

_VARIABLES = ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched() -> bool:
    """Whether torchrun has started this process."""
    return all(os.environ.get(name) for name in _VARIABLES)


def join(timeout_s: float = 120.0) -> None:
    """Under torchrun, on other ranks than 0: serve the driver and end this process with it. Elsewhere: return.

    Engines and ``parallelize`` do it; called at the top of a script, the other ranks do not load what they do not need.
    timeout_s: how long to wait for the driver to come here; then the process ends with status 1.
    """
    global driver_server
    if not launched() or driver_server is not None:
        return
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if rank:
        keep(rank, timeout_s)
    door = DriverServer(world)
    try:
        door.store = launcher_store(timeout_s)
        door.open(own_address(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
        door.store.set(store_key(), door.invitation())
    except (OSError, RuntimeError) as error:
        raise StartupError(f"torchrun's store cannot be reached: {error}") from error
    driver_server = door
