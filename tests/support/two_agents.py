"""torchrun on two "machines": two of its agents on the loopback interface, each with as many ranks."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.support import warm

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def agents(
    *arguments: str, logs: Path, folders: Sequence[Path] = (ROOT, ROOT), anew: bool = False, ranks: int = 1
) -> Iterator[list[subprocess.Popen[str]]]:
    """Two agents that run the same arguments, each in its folder; the first one's rank is 0. None is left after.

    They are forked, with all that they start, or started anew. ranks: of each.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", str(ranks), "--max-restarts", "0",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "two",
        "--log-dir", str(logs), *arguments,
    ]  # fmt: skip
    options: dict[str, Any] = {
        "env": {**os.environ, "PYTHONPATH": str(ROOT)},
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "start_new_session": True,
    }
    if anew:
        begin = partial(subprocess.Popen, [sys.executable, *command], text=True, **options)
    else:
        begin = partial(warm.start, command, **options)
    running = [begin(cwd=folder) for folder in folders]
    try:
        yield running
    finally:
        for agent in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(agent.pid, signal.SIGKILL)
            agent.communicate()
