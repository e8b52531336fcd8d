"""torchrun: run ranks in what torchrun has started, on one machine or several.

torchrun runs the same script on every rank. Rank 0's process is the driver and goes through the script; each of the
others becomes an *agent* (runtime.ranks.torchrun_agent) where the script first needs an engine: it serves the driver
until the driver ends, and ends with it. For each engine of the driver an agent starts a process, which connects
directly to the driver, and reports how it ended. So a rank that dies, stalls or fails ends its engine, as it does
without torchrun, and not the whole job.

The driver listens on its address that faces torchrun's store until every rank's agent has come, and leaves address and
key in the store. Whoever connects must prove that it knows the key (runtime.transport.handshake), and so do the ranks
to each other, with a secret of the engine's start. What is sent afterwards, tensors among it, is neither encrypted nor
signed: the network between the machines has to be trusted, as torch.distributed trusts it.
"""

from __future__ import annotations

import os

from runtime.ranks.torchrun_agent import run_agent
from runtime.ranks.torchrun_driver import start_server

_VARIABLES = ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched() -> bool:
    """Whether torchrun has started this process."""
    return all(os.environ.get(name) for name in _VARIABLES)


def join(timeout_s: float = 120.0) -> None:
    """Under torchrun, on other ranks than 0: serve the driver and end this process with it. Elsewhere: return.

    Engines and ``parallelize`` call it themselves. Called at the top of a script, it keeps the other ranks from
    loading what only the driver needs.

    Args:
        timeout_s: how long to wait for the driver to come here; after that the process ends with status 1.

    Raises:
        StartupError: on rank 0, where torchrun's store cannot be reached.

    >>> join()  # torchrun has not started this process: nothing happens
    """
    if not launched():
        return
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if rank:
        run_agent(rank, timeout_s)
    start_server(world, os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout_s)
