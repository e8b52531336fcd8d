"""not_moved: the error of a rank that could not send a message, or could not take it in."""

from __future__ import annotations

import torch

from runtime.errors import RankError, RankOutOfMemory, bytes_wanted
from runtime.transport.mailbox import Expected


def not_moved(what: str, wire: Expected, cause: BaseException, *, rank: int, step: int) -> RankError:
    """What the rank raises: that there is no memory for the message, unless its GPU has failed.

    Args:
        what: it could not do, such as "send".
        wire: of the message.
        cause: what was raised.
        rank, step: this rank, and the evaluation's number.
    """
    if isinstance(cause, torch.AcceleratorError) and "out of memory" not in str(cause):
        return RankError(f"cannot {what} %{wire.value}: {cause}", rank=rank, step=step)
    return RankOutOfMemory(
        f"no memory to {what} %{wire.value} ({wire.meta}): {cause}",
        rank=rank,
        step=step,
        size_bytes=bytes_wanted(cause) or wire.meta.size_bytes,
    )
