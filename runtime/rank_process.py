"""rank_process: where a rank's process begins, as ``python -P -m runtime.rank_process DESCRIPTOR DRIVER``.

DESCRIPTOR: of the inherited socket to the driver. DRIVER: the driver's process id. The watch over the driver starts
before torch is imported, which takes seconds.
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
    descriptor, driver = int(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which ends its ranks
    threading.Thread(target=_end_with, args=(driver, descriptor), name="driver watch", daemon=True).start()
    from runtime.serve import serve

    serve(Connection(descriptor))


def _end_with(driver: int, descriptor: int) -> None:
    """End this process when the driver's has ended: its end of the socket closes, or another becomes our parent.

    The second matters where a child that the driver forked holds a copy of the socket.
    """
    poll = select.poll()
    poll.register(descriptor, 0)  # hang-up is always reported
    while not poll.poll(1000) and os.getppid() == driver:
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
