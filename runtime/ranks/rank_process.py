"""rank_process: the program of a rank's process, ``python -P -m runtime.ranks.rank_process DESCRIPTOR PARENT``.

DESCRIPTOR: of the inherited socket to the driver. PARENT: the id of the process that started this one, which is the
driver or an agent that torchrun has started. Both are watched from the beginning, before torch is imported, which takes
seconds.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from multiprocessing.connection import Connection


def main() -> None:
    """Serve the driver; never returns."""
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which ends its ranks
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # of a driver that ignores it, which compilers cannot work with
    threading.Thread(target=_end_with, args=(parent, descriptor), name="driver watch", daemon=True).start()
    from runtime.ranks.rank_main import serve

    serve(Connection(descriptor))


def _end_with(parent: int, descriptor: int) -> None:
    """End this process when the driver's end of the socket closes, or when another process becomes our parent.

    The second matters where a child that the driver forked holds a copy of the socket.
    """
    poll = select.poll()
    poll.register(descriptor, getattr(select, "POLLRDHUP", 0))  # a socket pair's hang-up is always reported
    while not poll.poll(1000) and os.getppid() == parent:
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
