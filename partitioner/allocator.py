"""keep_freed_memory: have the C library keep what tensors free for those to come."""

from __future__ import annotations

import torch

BLOCK_BYTES = 31 << 20  # just below the 32 MiB up to which glibc adapts


def keep_freed_memory() -> None:
    """From now on blocks of up to BLOCK_BYTES come from memory that this process has already; costs next to nothing.

    glibc gives freed memory back to the system, to be faulted in again at the next call, until the process has once
    freed a large block. Page faults were a tenth of a denoiser's step on a CPU. At most twice BLOCK_BYTES stay unused.
    """
    torch.empty(BLOCK_BYTES, dtype=torch.uint8)
